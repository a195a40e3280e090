"""BM-2: whether and when a birthday is celebrated."""

from __future__ import annotations

import datetime as dt
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compose_app.birthdays import celebration as rules
from compose_app.birthdays.celebration import celebration, following
from compose_app.birthdays.schemas import ZONES

birthdays = st.dates(date(1900, 1, 1), date(2030, 12, 31)) | st.just(date(2004, 2, 29))
zones = st.sampled_from(sorted(ZONES))
moments = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(birthdays, zones, st.integers(1970, 2100))
def test_at_nine_where_there_is_a_nine(birthday: date, zone: str, year: int) -> None:
    """BM-2: on the day as the user's calendar has it, at 09:00 by the user's clock."""
    found = celebration(birthday, zone, year)
    assert found.day.year == year
    assert found.due_at.tzinfo is UTC
    local = found.due_at.astimezone(ZoneInfo(zone))
    nine = datetime.combine(found.day, dt.time(9))
    exists = nine.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC).astimezone(ZoneInfo(zone))
    if exists.replace(tzinfo=None) == nine:
        assert local.replace(tzinfo=None) == nine
    else:
        assert local.replace(tzinfo=None) > nine


@given(birthdays, st.integers(1970, 2100))
def test_the_day(birthday: date, year: int) -> None:
    """BM-2: the same day each year, but for the 29 February of other years."""
    day = celebration(birthday, "Etc/UTC", year).day
    if (day.month, day.day) != (birthday.month, birthday.day):
        assert (birthday.month, birthday.day, day.month, day.day) == (2, 29, 2, 28)
        with pytest.raises(ValueError, match="day"):
            date(year, 2, 29)


@given(birthdays, zones, moments)
def test_the_following_one(birthday: date, zone: str, after: datetime) -> None:
    """BM-2: none is left out and none comes twice, whatever year it is where."""
    first = following(birthday, zone, after)
    years = range(birthday.year + 1, 2104)
    due = sorted(celebration(birthday, zone, year).due_at for year in years)
    assert first.due_at == next(moment for moment in due if moment > after)
    second = following(birthday, zone, first.due_at)
    assert second.day.year == first.day.year + 1


@pytest.mark.parametrize(
    ("day", "at", "due"),
    [
        (date(2026, 3, 29), dt.time(2, 30), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        (date(2026, 10, 25), dt.time(2, 30), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
    ],
    ids=["does not exist: 03:30", "exists twice: the first"],
)
def test_clocks_put_forward_and_back(
    monkeypatch: pytest.MonkeyPatch, day: date, at: dt.time, due: datetime
) -> None:
    """BM-2: by rule, once."""
    monkeypatch.setattr(rules, "AT", at)
    assert celebration(day.replace(year=2000), "Europe/Berlin", 2026) == (day, due)


def test_a_day_that_a_country_left_out() -> None:
    """BM-2: Samoa went from 29 to 31 December 2011; the message comes, a day later by its clock."""
    found = celebration(date(1980, 12, 30), "Pacific/Apia", 2011)
    local = found.due_at.astimezone(ZoneInfo("Pacific/Apia"))
    assert local.replace(tzinfo=None) == datetime(2011, 12, 31, 9)


def test_the_first_to_celebrate_and_the_last() -> None:
    """BM-2: 26 hours lie between them."""
    first = celebration(date(2000, 1, 1), "Pacific/Kiritimati", 2027).due_at
    last = celebration(date(2000, 1, 1), "Etc/GMT+12", 2027).due_at
    assert (first, last) == (
        datetime(2026, 12, 31, 19, tzinfo=UTC),
        datetime(2027, 1, 1, 21, tzinfo=UTC),
    )
