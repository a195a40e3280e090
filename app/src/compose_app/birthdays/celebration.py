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
