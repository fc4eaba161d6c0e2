"""Dates as groups: a date or time truncated to its month, day, hour or minute."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from zoneinfo import ZoneInfo


class Unit(StrEnum):
    """What a date is truncated to, and how the group is then written."""

    MONTH = "month"  # 2024-07
    DAY = "day"  # 2024-07-15
    HOUR = "hour"  # 2024-07-15T09
    MINUTE = "minute"  # 2024-07-15T09:30


_LENGTH = {Unit.MONTH: 7, Unit.DAY: 10, Unit.HOUR: 13, Unit.MINUTE: 16}
# What of ISO 8601 counts: a calendar date, and after T or a blank the time. `fromisoformat` also reads week dates and
# any separator at all.
_CALENDAR_DATE = re.compile(r"(?:\d{4}-\d\d-\d\d|\d{8})([Tt ].+)?", re.ASCII)
_NO_DATE = "not an ISO 8601 date, such as 2024-07-15 or 2024-07-15T09:30:00Z"


@dataclass(frozen=True, slots=True)
class Truncation:
    """Cuts an ISO 8601 date or time down to `unit`.

    Without a zone the calendar date and wall-clock time count as written, whatever offset follows them. With one,
    a time with an offset is first converted to the zone; a time without an offset is taken as that zone's already.
    """

    unit: Unit
    zone: ZoneInfo | None = None

    def apply(self, text: str) -> str:
        """The group a date belongs to, e.g. `"2024-07-15T23:30:00Z"` by day in Europe/Berlin is `"2024-07-16"`.

        Raises:
            ValueError: not an ISO 8601 calendar date or time, or a date without a time of day where the unit needs one.
        """
        parts = _CALENDAR_DATE.fullmatch(text)
        if parts is None:
            raise ValueError(_NO_DATE)
        try:
            moment = datetime.fromisoformat(text)
            if self.zone is not None and moment.tzinfo is not None:
                moment = moment.astimezone(self.zone)
        except (ValueError, OverflowError) as error:
            raise ValueError(_NO_DATE) from error
        if parts[1] is None and self.unit in (Unit.HOUR, Unit.MINUTE):
            raise ValueError(f"a date without a time of day cannot be truncated to the {self.unit}")
        return moment.isoformat()[: _LENGTH[self.unit]]
