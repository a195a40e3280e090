"""Whether and when a birthday is celebrated: the one place that knows the rules."""

from __future__ import annotations

import calendar
import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

AT = datetime.time(9)
"""Local time at which the message is due."""


class Celebration(NamedTuple):
    """One birthday of a user."""

    day: datetime.date
    """As the user's calendar has it."""
    due_at: datetime.datetime
    """When the message is due, in UTC."""


def celebration(birthday: datetime.date, zone: str, year: int) -> Celebration:
    """The celebration of one year.

    Who was born on 29 February celebrates on the 28th in years without one. Where clocks are put
    forward over the time that day, it is as if they had not been; where they are put back and it
    comes twice, the first counts (PEP 495, fold=0).

    Args:
        birthday: day of birth.
        zone: name of an IANA time zone.
        year: of the user's calendar.
    """
    leaps = (birthday.month, birthday.day) == (2, 29) and not calendar.isleap(year)
    day = datetime.date(year, 2, 28) if leaps else birthday.replace(year=year)
    local = datetime.datetime.combine(day, AT, ZoneInfo(zone))
    return Celebration(day, local.astimezone(datetime.UTC))


def following(birthday: datetime.date, zone: str, after: datetime.datetime) -> Celebration:
    """The first celebration that is due after a moment; the day of birth itself is none.

    Args:
        birthday: day of birth.
        zone: name of an IANA time zone.
        after: with a time zone.
    """
    # Somewhere it is another year already, or still.
    year = max(after.astimezone(datetime.UTC).year - 1, birthday.year + 1)
    while True:
        found = celebration(birthday, zone, year)
        if found.due_at > after:
            return found
        year += 1


def between(
    birthday: datetime.date, zone: str, after: datetime.datetime, until: datetime.datetime
) -> list[Celebration]:
    """The celebrations that are due after a moment and not after another, in their order.

    Args:
        birthday: day of birth.
        zone: name of an IANA time zone.
        after: with a time zone.
        until: with a time zone.
    """
    found = []
    coming = following(birthday, zone, after)
    while coming.due_at <= until:
        found.append(coming)
        coming = following(birthday, zone, coming.due_at)
    return found


def days(after: datetime.datetime, until: datetime.datetime) -> list[int]:
    """Days of birth, as month * 100 + day, that can have a celebration due between two moments.

    Args:
        after: in UTC.
        until: in UTC, less than a year later.
    """
    day, last = after.date() - datetime.timedelta(days=1), until.date() + datetime.timedelta(days=1)
    found = []
    while day <= last:
        found.append(day.month * 100 + day.day)
        if (day.month, day.day) == (2, 28):
            found.append(229)
        day += datetime.timedelta(days=1)
    return found


def moved(
    birthday: datetime.date, zone: str, planned: Celebration, now: datetime.datetime
) -> Celebration | None:
    """What becomes of a celebration that nobody was told of yet when what decides it changes.

    A change of zone can make it late, on the same day: it is then due at once. A birthday that is
    put to a day that is over has been missed before anybody knew of it.

    Args:
        birthday: day of birth from now on.
        zone: name of an IANA time zone, from now on.
        planned: as it was.
        now: moment of the change.

    Returns:
        The celebration, which may be due already; None if there is none this year.
    """
    year = planned.day.year
    if year <= birthday.year:
        return None
    anew = celebration(birthday, zone, year)
    if anew.day != planned.day and anew.due_at <= min(now, planned.due_at):
        return None
    return anew
