"""Dates as groups."""

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.truncation import Truncation, Unit


@pytest.mark.parametrize(
    ("unit", "group"),
    [
        (Unit.MONTH, "2024-07"),
        (Unit.DAY, "2024-07-15"),
        (Unit.HOUR, "2024-07-15T09"),
        (Unit.MINUTE, "2024-07-15T09:30"),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "2024-07-15T09:30:59",
        "2024-07-15T09:30:59.999999",
        "2024-07-15T09:30:59,9",
        "2024-07-15T09:30:59.999999999Z",
        "2024-07-15T09:30Z",
        "2024-07-15 09:30:00+14:00",
        "2024-07-15T09:30:00-05:00",
        "2024-07-15t09:30:00+0530",
        "20240715T093000",
    ],
)
def test_time_without_a_zone__counts_as_written(unit: Unit, group: str, text: str) -> None:
    assert Truncation(unit).apply(text) == group


@pytest.mark.parametrize("text", ["2024-07-15", "20240715"])
@pytest.mark.parametrize("zone", [None, ZoneInfo("Pacific/Kiritimati")])
@pytest.mark.parametrize(("unit", "group"), [(Unit.MONTH, "2024-07"), (Unit.DAY, "2024-07-15")])
def test_date_without_a_time__counts_as_written(unit: Unit, group: str, zone: ZoneInfo | None, text: str) -> None:
    assert Truncation(unit, zone).apply(text) == group


@pytest.mark.parametrize("unit", [Unit.HOUR, Unit.MINUTE])
@pytest.mark.parametrize("text", ["2024-07-15", "20240715"])
def test_date_without_a_time__cannot_be_cut_to_less_than_a_day(unit: Unit, text: str) -> None:
    with pytest.raises(ValueError, match=f"a date without a time of day cannot be truncated to the {unit}"):
        Truncation(unit).apply(text)


@pytest.mark.parametrize(
    ("text", "zone", "unit", "group"),
    [
        ("2024-07-15T23:30:00Z", "Europe/Berlin", Unit.DAY, "2024-07-16"),
        ("2024-07-15T21:59:59Z", "Europe/Berlin", Unit.DAY, "2024-07-15"),
        ("2024-12-31T23:00:00Z", "Europe/Berlin", Unit.MONTH, "2025-01"),
        ("2024-07-01T03:59:59Z", "America/New_York", Unit.MONTH, "2024-06"),
        ("2024-07-15T09:30:00+02:00", "UTC", Unit.HOUR, "2024-07-15T07"),
        ("2024-07-15T09:30:00Z", "Asia/Kathmandu", Unit.MINUTE, "2024-07-15T15:15"),
        ("2024-07-15T23:30:00", "Europe/Berlin", Unit.DAY, "2024-07-15"),  # no offset: the zone's own time
        # The night of 31 March, in which Berlin has no hour from 2 to 3.
        ("2024-03-31T00:59:59Z", "Europe/Berlin", Unit.HOUR, "2024-03-31T01"),
        ("2024-03-31T01:00:00Z", "Europe/Berlin", Unit.HOUR, "2024-03-31T03"),
        ("2024-03-31T02:30:00", "Europe/Berlin", Unit.HOUR, "2024-03-31T02"),
        # The night of 27 October, in which it has that hour twice.
        ("2024-10-27T00:30:00Z", "Europe/Berlin", Unit.HOUR, "2024-10-27T02"),
        ("2024-10-27T01:30:00Z", "Europe/Berlin", Unit.HOUR, "2024-10-27T02"),
        ("2024-10-27T02:00:00Z", "Europe/Berlin", Unit.HOUR, "2024-10-27T03"),
    ],
)
def test_time_with_an_offset__counts_in_the_zone(text: str, zone: str, unit: Unit, group: str) -> None:
    assert Truncation(unit, ZoneInfo(zone)).apply(text) == group


@pytest.mark.parametrize("zone", [None, ZoneInfo("UTC")])
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "today", "15.07.2024", "07/15/2024", "1721036400", "2024", "2024-07", "2024-7-5"),
        *("2024-07-15 ", " 2024-07-15", "2024-07-15\n", "2024-07-15T", "2024-07-15T09:30Z ", "2024-07-15Z"),
        *("2024-02-30", "2023-02-29", "2024-13-01", "2024-00-10", "0000-01-01", "-2024-01-01", "+12024-01-01"),
        *("2024-07-15T25:00", "2024-07-15T09:60", "2016-12-31T23:59:60Z", "2024-07-15T09:30:00+25:00"),
        *("2024-W29-1", "2024-W29", "2024W291", "2024-197", "2024W29T09:30"),
        *("2024-07-15x09:30", "2024-07-15①09:30", "2024-07-15_09:30", "\uff12\uff10\uff12\uff14-07-15", "٢٠٢٤-07-15"),
        *("2024-07-15T09:30:00 Europe/Berlin", "\ud800", "2024-07-15T\ud800", "9" * 10_000),
    ],
)
def test_text_that_is_not_a_calendar_date__is_refused(text: str, zone: ZoneInfo | None) -> None:
    with pytest.raises(ValueError, match=r"^not an ISO 8601 date"):
        Truncation(Unit.DAY, zone).apply(text)


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("0001-01-01T00:00:00+00:01", "UTC"),
        ("0001-01-01T00:00:00Z", "America/New_York"),
        ("9999-12-31T23:59:59-00:01", "UTC"),
        ("9999-12-31T23:59:59Z", "Asia/Tokyo"),
    ],
)
def test_time_that_leaves_the_calendar__is_refused(text: str, zone: str) -> None:
    with pytest.raises(ValueError, match=r"^not an ISO 8601 date"):
        Truncation(Unit.DAY, ZoneInfo(zone)).apply(text)


@given(st.datetimes(timezones=st.none() | st.timezones()), st.sampled_from(Unit))
def test_group_of_any_time__is_the_beginning_of_its_text(moment: object, unit: Unit) -> None:
    group = Truncation(unit).apply(str(moment))

    assert str(moment).replace(" ", "T").startswith(group)


@given(st.text(), st.sampled_from(Unit), st.none() | st.just(ZoneInfo("Europe/Berlin")))
def test_any_text__is_a_group_or_a_value_error(text: str, unit: Unit, zone: ZoneInfo | None) -> None:
    try:
        group = Truncation(unit, zone).apply(text)
    except ValueError:
        return

    assert group.isascii()
