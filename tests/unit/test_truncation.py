"""Dates as groups."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.truncation import Epoch, Truncation, Unit, read_date


@pytest.mark.parametrize(
    ("unit", "group"),
    [
        (Unit.YEAR, "2024"),
        (Unit.QUARTER, "2024-Q3"),
        (Unit.MONTH, "2024-07"),
        (Unit.WEEK, "2024-W29"),
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
        "2024-07-15t09:30:00z",
        "2024-07-15T09:30:00+00:53:28",
        "20240715T093000",
        "20240715T0930-08",
    ],
)
def test_time_without_a_zone__counts_as_written(unit: Unit, group: str, text: str) -> None:
    assert Truncation(unit).apply(text) == group


@pytest.mark.parametrize("text", ["2024-07-15", "20240715"])
@pytest.mark.parametrize("zone", [None, ZoneInfo("Pacific/Kiritimati")])
@pytest.mark.parametrize(
    ("unit", "group"),
    [
        (Unit.YEAR, "2024"),
        (Unit.QUARTER, "2024-Q3"),
        (Unit.MONTH, "2024-07"),
        (Unit.WEEK, "2024-W29"),
        (Unit.DAY, "2024-07-15"),
    ],
)
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
        ("2024-12-31T23:00:00Z", "Europe/Berlin", Unit.YEAR, "2025"),
        ("2024-12-31T22:59:59z", "Europe/Berlin", Unit.QUARTER, "2024-Q4"),
        ("2024-12-29T23:00:00Z", "Europe/Berlin", Unit.WEEK, "2025-W01"),
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


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("2024-01-01", "2024-W01"),
        ("2024-12-29", "2024-W52"),
        ("2024-12-30", "2025-W01"),
        ("2021-01-03", "2020-W53"),
        ("2021-01-04", "2021-W01"),
        ("0001-01-01", "0001-W01"),
        ("9999-12-31", "9999-W52"),
    ],
)
def test_week__is_of_the_year_that_has_most_of_it(text: str, group: str) -> None:
    assert Truncation(Unit.WEEK).apply(text) == group


@pytest.mark.parametrize(("month", "quarter"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3), (9, 3), (10, 4), (12, 4)])
def test_quarter__has_three_months(month: int, quarter: int) -> None:
    assert Truncation(Unit.QUARTER).apply(f"0987-{month:02}-01") == f"0987-Q{quarter}"


@pytest.mark.parametrize("text", ["2024-07-15T24:00:00Z", "2024-07-15T24:00Z", "20240715T240000.000Z", "2024-07-15T24"])
def test_hour_24__is_midnight_at_the_end_of_the_day(text: str) -> None:
    assert Truncation(Unit.MINUTE).apply(text) == "2024-07-16T00:00"


def test_hour_24_of_december_31st__is_in_the_next_year() -> None:
    assert Truncation(Unit.YEAR).apply("2024-12-31T24:00:00") == "2025"
    assert Truncation(Unit.YEAR, ZoneInfo("America/New_York")).apply("2024-12-31T24:00:00Z") == "2024"


@pytest.mark.parametrize("zone", [None, ZoneInfo("UTC")])
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "today", "15.07.2024", "07/15/2024", "1721036400", "2024", "2024-07", "2024-7-5", "202407-15"),
        *("2024-07-15 ", " 2024-07-15", "2024-07-15\n", "2024-07-15T", "2024-07-15T09:30Z ", "2024-07-15Z"),
        *("-2024-01-01", "+12024-01-01", "2024-07-15T09:30:", "2024-07-15T09:3000", "2024-07-15T09.5"),
        "2024-07-15T09:30:00-02:60",
        *("2024-W29-1", "2024-W29", "2024W291", "2024-197", "2024W29T09:30"),
        *("2024-07-15x09:30", "2024-07-15①09:30", "2024-07-15_09:30", "\uff12\uff10\uff12\uff14-07-15", "٢٠٢٤-07-15"),
        *("2024-07-15T09:30:00 Europe/Berlin", "\ud800", "2024-07-15T\ud800", "9" * 10_000),
    ],
)
def test_text_that_is_not_a_calendar_date__is_refused(text: str, zone: ZoneInfo | None) -> None:
    with pytest.raises(ValueError, match=r"^not an ISO 8601 date"):
        Truncation(Unit.DAY, zone).apply(text)


@pytest.mark.parametrize("zone", [None, ZoneInfo("UTC")])
@pytest.mark.parametrize(
    "text",
    [
        *("2024-02-30", "2023-02-29", "2024-13-01", "2024-00-10", "0000-01-01", "0000-00-00T00:00:00Z"),
        *("2024-07-15T25:00", "2024-07-15T24:00:01", "2024-07-15T24:01", "2024-07-15T24:00:00.1", "2024-07-15T09:60"),
        *("2016-12-31T23:59:60Z", "2024-07-15T09:30:00+25:00", "9999-12-31T24:00:00"),
    ],
)
def test_date_that_there_is_not__is_refused(text: str, zone: ZoneInfo | None) -> None:
    with pytest.raises(ValueError, match=r"^no such date or time of day$"):
        Truncation(Unit.DAY, zone).apply(text)


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("0001-01-01T00:00:00+00:01", "UTC"),
        ("0001-01-01T00:00:00Z", "America/New_York"),
        ("9999-12-31T23:59:59-00:01", "UTC"),
        ("9999-12-31T23:59:59Z", "Asia/Tokyo"),
        ("9999-12-31T23:59:59Z", "Europe/Berlin"),
    ],
)
def test_time_that_leaves_the_calendar__is_told_so(text: str, zone: str) -> None:
    with pytest.raises(ValueError, match=f"^outside the years 1 to 9999 in time zone {zone}$"):
        Truncation(Unit.DAY, ZoneInfo(zone)).apply(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_times_that_mean_never__count_as_written(text: str) -> None:
    assert Truncation(Unit.DAY).apply(text) == text[:10]
    assert Truncation(Unit.DAY, ZoneInfo("UTC")).apply(text) == text[:10]


CUT = [Unit.YEAR, Unit.MONTH, Unit.DAY, Unit.HOUR, Unit.MINUTE]


@given(st.datetimes(timezones=st.none() | st.timezones()), st.sampled_from(CUT))
def test_group_of_any_time__is_the_beginning_of_its_text(moment: datetime, unit: Unit) -> None:
    group = Truncation(unit).apply(str(moment))

    assert str(moment).replace(" ", "T").startswith(group)


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_any_time_as_python_writes_it__is_read_back(moment: datetime) -> None:
    for text in (str(moment), moment.isoformat()):
        read = read_date(text)
        assert isinstance(read, datetime)
        # An hour that a zone has twice equals no other zone's: "PEP 495: Local Time Disambiguation".
        assert (read.replace(tzinfo=None), read.utcoffset()) == (moment.replace(tzinfo=None), moment.utcoffset())


@given(st.dates())
def test_any_date__is_in_the_week_and_quarter_that_python_says(day: date) -> None:
    assert Truncation(Unit.WEEK).apply(str(day)) == f"{day:%G}".rjust(4, "0") + f"-W{day:%V}"
    assert Truncation(Unit.QUARTER).apply(str(day)) == f"{day.year:04}-Q{1 + (day.month - 1) // 3}"


@given(
    st.text(), st.sampled_from(Unit), st.none() | st.just(ZoneInfo("Europe/Berlin")), st.none() | st.sampled_from(Epoch)
)
def test_any_text__is_a_group_or_a_value_error(
    text: str, unit: Unit, zone: ZoneInfo | None, epoch: Epoch | None
) -> None:
    try:
        group = Truncation(unit, zone, epoch).apply(text)
    except ValueError:
        return

    assert group.isascii()


# --- Numbers since 1970 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "epoch", "group"),
    [
        ("1721037600", Epoch.SECONDS, "2024-07-15T10:00"),
        ("1721037600123", Epoch.MILLISECONDS, "2024-07-15T10:00"),
        ("1721037659.999", Epoch.SECONDS, "2024-07-15T10:00"),
        ("1.7210376E9", Epoch.SECONDS, "2024-07-15T10:00"),
        ("0", Epoch.SECONDS, "1970-01-01T00:00"),
        ("-0", Epoch.MILLISECONDS, "1970-01-01T00:00"),
        ("-1", Epoch.SECONDS, "1969-12-31T23:59"),
        ("-1", Epoch.MILLISECONDS, "1969-12-31T23:59"),
        ("-0.00000000000000000000000000000000000001", Epoch.SECONDS, "1969-12-31T23:59"),
        ("253402300799.9", Epoch.SECONDS, "9999-12-31T23:59"),
        ("-62135596800", Epoch.SECONDS, "0001-01-01T00:00"),
    ],
)
def test_number_since_1970__is_a_date_in_utc(text: str, epoch: Epoch, group: str) -> None:
    assert Truncation(Unit.MINUTE, None, epoch).apply(text) == group


def test_number_since_1970__is_converted_to_the_zone() -> None:
    assert Truncation(Unit.DAY, ZoneInfo("Asia/Tokyo"), Epoch.SECONDS).apply("1721066400") == "2024-07-16"


@pytest.mark.parametrize("text", ["253402300800", "-62135596801", "1721037600123000", "1E125", "-9E125"])
def test_number_that_leaves_the_calendar__is_told_so(text: str) -> None:
    with pytest.raises(ValueError, match=r"^outside the years 1 to 9999, read as seconds since 1970$"):
        Truncation(Unit.DAY, None, Epoch.SECONDS).apply(text)


@pytest.mark.parametrize("text", ["", "2024-07-15", "2024-07-15T10:00:00Z", "1_000", " 5", "NaN", "Infinity", "1E999"])
def test_text_that_is_no_number_since_1970__is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a number of milliseconds since 1970$"):
        Truncation(Unit.DAY, None, Epoch.MILLISECONDS).apply(text)


@given(st.datetimes(timezones=st.just(UTC)), st.sampled_from(Unit))
def test_date_as_a_number__is_in_the_group_of_its_text(moment: datetime, unit: Unit) -> None:
    milliseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    group = Truncation(unit).apply(str(moment))

    assert Truncation(unit, None, Epoch.MILLISECONDS).apply(str(milliseconds)) == group
    assert Truncation(unit, None, Epoch.SECONDS).apply(str(milliseconds // 1000)) == group
