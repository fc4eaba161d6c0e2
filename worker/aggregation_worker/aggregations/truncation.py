"""Dates as groups: a date or time truncated to its year, quarter, month, week, day, hour or minute.

What is a date does not depend on the Python that runs: `datetime.fromisoformat` reads more with every version.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_FLOOR
from enum import StrEnum
from zoneinfo import ZoneInfo

from aggregation_worker.aggregations.numbers import EXACT, parse_number


class Unit(StrEnum):
    """What a date is truncated to, and how the group is then written."""

    YEAR = "year"  # 2024
    QUARTER = "quarter"  # 2024-Q3
    MONTH = "month"  # 2024-07
    WEEK = "week"  # 2024-W29, by ISO 8601: the year is the one that has most of the week's days
    DAY = "day"  # 2024-07-15
    HOUR = "hour"  # 2024-07-15T09
    MINUTE = "minute"  # 2024-07-15T09:30


class Epoch(StrEnum):
    """What a date that is a number counts since the beginning of 1970 in UTC."""

    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"


_LENGTH = {Unit.YEAR: 4, Unit.MONTH: 7, Unit.DAY: 10, Unit.HOUR: 13, Unit.MINUTE: 16}
# What of ISO 8601 counts: a calendar date, and after T or a blank the time, in the basic or the extended form.
_DATE = re.compile(
    r"\d{4}(-?)\d\d\1\d\d(?:[Tt ](\d\d)(?:(:?)\d\d(?:\3\d\d(?:[.,]\d+)?)?)?"
    r"(?:[Zz]|[+-]\d\d(?::?[0-5]\d(?::?[0-5]\d)?)?)?)?",
    re.ASCII,
)
_NO_DATE = "not an ISO 8601 date, such as 2024-07-15 or 2024-07-15T09:30:00Z"
_NO_SUCH_DATE = "no such date or time of day"
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Truncation:
    """Cuts an ISO 8601 date or time, or with `epoch` a number, down to `unit`.

    Without a zone the calendar date and wall-clock time count as written, whatever offset follows them, and a number in
    UTC. With one, a number or a time with an offset is first converted to the zone; a time without an offset is taken
    as that zone's already.
    """

    unit: Unit
    zone: ZoneInfo | None = None
    epoch: Epoch | None = None

    def apply(self, text: str) -> str:
        """The group a date belongs to, e.g. `"2024-07-15T23:30:00Z"` by day in Europe/Berlin is `"2024-07-16"`.

        Raises:
            ValueError: not a date of the years 1 to 9999, or a date without a time of day where the unit needs one.
        """
        moment = read_date(text) if self.epoch is None else _since_1970(text, self.epoch)
        if not isinstance(moment, datetime):
            if self.unit in (Unit.HOUR, Unit.MINUTE):
                raise ValueError(f"a date without a time of day cannot be truncated to the {self.unit}")
        elif self.zone is not None and moment.tzinfo is not None:
            try:
                moment = moment.astimezone(self.zone)
            except (ValueError, OverflowError) as error:
                raise ValueError(f"outside the years 1 to 9999 in time zone {self.zone.key}") from error
        if self.unit is Unit.QUARTER:
            return f"{moment.year:04}-Q{(moment.month + 2) // 3}"
        if self.unit is Unit.WEEK:
            year, week, _ = moment.isocalendar()
            return f"{year:04}-W{week:02}"
        return moment.isoformat()[: _LENGTH[self.unit]]


def read_date(text: str) -> date:
    """An ISO 8601 calendar date, as a `datetime` where a time of day is given, with the offset if there is one.

    24:00 is midnight at the end of its day.

    Raises:
        ValueError: it is not of that form, or there is no such date or time in the years 1 to 9999.
    """
    parts = _DATE.fullmatch(text)
    if parts is None:
        raise ValueError(_NO_DATE)
    hour = parts[2]
    try:
        if hour is None:
            return date.fromisoformat(text)
        if hour != "24":
            return datetime.fromisoformat(text.upper())
        start, end = parts.span(2)
        midnight = datetime.fromisoformat(f"{text[:start]}00{text[end:]}".upper())
        if midnight.time() == time.min:
            return midnight + timedelta(days=1)
    except (ValueError, OverflowError) as error:
        raise ValueError(_NO_SUCH_DATE) from error
    raise ValueError(_NO_SUCH_DATE)


def _since_1970(text: str, epoch: Epoch) -> datetime:
    try:
        number = parse_number(text)
    except ValueError as error:
        raise ValueError(f"not a number of {epoch} since 1970") from error
    seconds = number.scaleb(-3, EXACT) if epoch is Epoch.MILLISECONDS else number
    try:
        return _BEGINNING + timedelta(seconds=int(seconds.to_integral_value(ROUND_FLOOR)))
    except OverflowError as error:
        raise ValueError(f"outside the years 1 to 9999, read as {epoch} since 1970") from error
