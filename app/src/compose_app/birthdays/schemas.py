"""What users look like from outside."""

from __future__ import annotations

import datetime
import re
import zoneinfo
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from compose_app.fields import MAX_ID, Decimal, Text

FIRST_BIRTHDAY = datetime.date(1900, 1, 1)
EARLIEST_ZONE = datetime.timezone(datetime.timedelta(hours=14))
"""Where a day begins first."""
ZONES = frozenset(zoneinfo.available_timezones()) - {"localtime", "posixrules", "Factory"}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def _iso_date(value: object) -> datetime.date:
    """A date as RFC 3339 has it: fromisoformat() would also take weeks, and no hyphens."""
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        raise ValueError("must be a date such as 2000-01-31")
    try:
        return datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError("must be a date such as 2000-01-31") from None


def _has_come(value: datetime.date) -> datetime.date:
    if value < FIRST_BIRTHDAY:
        raise ValueError(f"must not be before {FIRST_BIRTHDAY}")
    if value > datetime.datetime.now(EARLIEST_ZONE).date():
        raise ValueError("must not be in the future")
    return value


def _known_zone(value: str) -> str:
    if value not in ZONES:
        raise ValueError("must be the name of an IANA time zone, such as Europe/Berlin")
    return value


Name = Annotated[Text, Field(min_length=1, max_length=100, pattern=r"\S")]
Birthday = Annotated[
    datetime.date,
    BeforeValidator(_iso_date),
    AfterValidator(_has_come),
    Field(description="Day of birth, from 1900-01-01 to today.", examples=["1815-12-10"]),
]
TimeZone = Annotated[
    str,
    AfterValidator(_known_zone),
    Field(max_length=64, description="IANA time zone.", examples=["Europe/London"]),
]
Email = Annotated[
    str,
    Field(
        max_length=254,
        # What an address must have; whether it leads anywhere only a message can tell.
        pattern=r"^[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f.]+(\.[^@\s\x00-\x1f\x7f.]+)+$",
        description="Where messages go.",
        examples=["ada@example.org"],
    ),
]


class UserIn(BaseModel):
    """A user to be created, or what one shall be from now on."""

    model_config = ConfigDict(strict=True, extra="forbid")

    first_name: Name = Field(examples=["Ada"])
    last_name: Name = Field(examples=["Lovelace"])
    birthday: Birthday
    time_zone: TimeZone
    email: Email


class User(BaseModel):
    """A user."""

    id: int = Field(ge=1, le=MAX_ID)
    first_name: Name
    last_name: Name
    birthday: datetime.date
    time_zone: str
    email: str
    created_at: datetime.datetime = Field(description="When it was created, RFC 3339 in UTC.")
    next_birthday: datetime.date = Field(
        description="Day of the next celebration; of 29 February it is the 28th in other years."
    )
    next_message_at: datetime.datetime = Field(
        description="When its message is due: at 09:00 in the user's time zone. RFC 3339 in UTC."
    )


class UserPath(BaseModel):
    """Which user."""

    id: Decimal = Field(ge=1, le=MAX_ID)
