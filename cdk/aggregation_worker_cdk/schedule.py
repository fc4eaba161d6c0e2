"""Schedule expressions as EventBridge takes them, checked here: CloudFormation finds a mistake only while it deploys.

"Setting a schedule pattern for scheduled rules", Amazon EventBridge user guide.
"""

import re
from datetime import date, timedelta
from itertools import pairwise

_RATE = re.compile(r"rate\(([1-9][0-9]*) (minute|hour|day)(s?)\)")
_CRON = re.compile(r"cron\((\S+) (\S+) (\S+) (\S+) (\S+) (\S+)\)")
_MINUTES_OF = {"minute": 1, "hour": 60, "day": 24 * 60}


def _field(numbers: range, names: str = "", special: str = "") -> re.Pattern[str]:
    """One field of a cron expression: values, ranges of them and steps in a list, or what else is `special` to it."""
    value = "(?:" + "|".join([*(f"0?{number}" if number < 10 else str(number) for number in numbers), *names.split()])
    value += ")"
    element = rf"(?:(?:\*|{value}(?:-{value})?)(?:/[1-9][0-9]*)?{special.replace('VALUE', value)})"
    return re.compile(rf"{element}(?:,{element})*", re.IGNORECASE)


_DAYS, _MONTHS, _WEEKDAYS = range(1, 32), range(1, 13), range(1, 8)
_NAMES_OF_MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"
_NAMES_OF_WEEKDAYS = "SUN MON TUE WED THU FRI SAT"
# By name, in their order.
_FIELDS = {
    # One: a second run within the hour could meet the first one.
    "minutes": re.compile("[0-5]?[0-9]"),
    "hours": _field(range(24)),
    "day of month": _field(_DAYS, special=r"|\?|L|LW|VALUEW"),
    "month": _field(_MONTHS, _NAMES_OF_MONTHS),
    "day of week": _field(_WEEKDAYS, _NAMES_OF_WEEKDAYS, special=r"|\?|L|VALUEL|VALUE#[1-5]"),
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


def longest_gap(expression: str) -> timedelta | None:
    """How long a schedule without mistakes leaves between two runs at most, in whole days for cron.

    Returns:
        `None` where a run is the last one, or where a day is named as the last, the nearest or the second of its kind:
        such days are weeks apart.
    """
    if rate := _RATE.fullmatch(expression):
        return timedelta(minutes=int(rate[1]) * _MINUTES_OF[rate[2]])
    _, _, day, month, weekday, year = expression.removeprefix("cron(").removesuffix(")").upper().split()
    if year != "*" or re.search(r"[0-9]L|[0-9]W|#|\bL", f"{day} {weekday}"):
        return None
    days, months = _values(day, _DAYS), _values(month, _MONTHS, _NAMES_OF_MONTHS)
    weekdays = _values(weekday, _WEEKDAYS, _NAMES_OF_WEEKDAYS)
    eight_years = (date(2024, 1, 1) + timedelta(number) for number in range(8 * 365 + 2))
    runs = [
        one for one in eight_years if one.day in days and one.month in months and one.isoweekday() % 7 + 1 in weekdays
    ]
    return max((later - earlier for earlier, later in pairwise(runs)), default=None)


def _values(field: str, numbers: range, names: str = "") -> set[int]:
    """The numbers that a field of a cron expression stands for."""
    for number, name in enumerate(names.split(), start=1):
        field = field.replace(name, str(number))
    found: set[int] = set()
    for element in field.split(","):
        values, _, step = element.partition("/")
        first, _, last = values.partition("-")
        if first in ("*", "?"):
            first, last = str(numbers[0]), str(numbers[-1])
        elif not last:
            last = str(numbers[-1]) if step else first
        found.update(range(int(first), int(last) + 1, int(step or 1)))
    return found
