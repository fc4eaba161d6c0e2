"""Schedule expressions as EventBridge takes them, checked here: CloudFormation finds a mistake only while it deploys.

"Setting a schedule pattern for scheduled rules", Amazon EventBridge user guide.
"""

import re

_RATE = re.compile(r"rate\(([1-9][0-9]*) (minute|hour|day)(s?)\)")
_CRON = re.compile(r"cron\((\S+) (\S+) (\S+) (\S+) (\S+) (\S+)\)")
_MINUTES_OF = {"minute": 1, "hour": 60, "day": 24 * 60}


def _field(numbers: range, names: str = "", special: str = "") -> re.Pattern[str]:
    """One field of a cron expression: values, ranges of them and steps in a list, or what else is `special` to it."""
    value = "(?:" + "|".join([*(f"0?{number}" if number < 10 else str(number) for number in numbers), *names.split()])
    value += ")"
    element = rf"(?:(?:\*|{value}(?:-{value})?)(?:/[1-9][0-9]*)?{special.replace('VALUE', value)})"
    return re.compile(rf"{element}(?:,{element})*", re.IGNORECASE)


# By name, in their order.
_FIELDS = {
    # One: a second run within the hour could meet the first one.
    "minutes": re.compile("[0-5]?[0-9]"),
    "hours": _field(range(24)),
    "day of month": _field(range(1, 32), special=r"|\?|L|LW|VALUEW"),
    "month": _field(range(1, 13), "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"),
    "day of week": _field(range(1, 8), "SUN MON TUE WED THU FRI SAT", special=r"|\?|L|VALUEL|VALUE#[1-5]"),
    "year": _field(range(1970, 2200)),
}


def mistake_in(expression: str) -> str | None:
    """What is wrong with a schedule, as a clause; `None` if it can be deployed and runs at most once an hour."""
    if rate := _RATE.fullmatch(expression):
        return _mistake_in_rate(int(rate[1]), rate[2], plural=bool(rate[3]))
    if cron := _CRON.fullmatch(expression):
        return _mistake_in_cron(cron.groups())
    return "a schedule like rate(1 day) or cron(0 3 * * ? *) is needed"


def _mistake_in_rate(value: int, unit: str, *, plural: bool) -> str | None:
    if plural != (value > 1):
        return f"EventBridge takes {value} {unit}{'s' if value > 1 else ''}"
    if value * _MINUTES_OF[unit] < 60:
        return "at most once an hour: a run reads the whole table and may take a quarter of one"
    return None


def _mistake_in_cron(fields: tuple[str, ...]) -> str | None:
    for (name, pattern), text in zip(_FIELDS.items(), fields, strict=True):
        if not pattern.fullmatch(text):
            one = "; one number is needed, since it runs at most once an hour" if name == "minutes" else ""
            return f"{name} cannot be {text!r}{one} (minutes, hours, day of month, month, day of week, year; UTC)"
    if (fields[2] == "?") == (fields[4] == "?"):
        return "one of day of month and day of week must be ?, and only one"
    return None
