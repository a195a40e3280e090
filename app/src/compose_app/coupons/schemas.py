"""What coupons and claims look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from compose_app.cursor import decode_text
from compose_app.fields import MAX_INTEGER, MAX_PAGE, Decimal, Text

MAX_BATCH = 1000


def _in_a_path(value: str) -> str:
    """A client would take these for the directory itself and the one above."""
    if value in (".", ".."):
        raise ValueError("must not be . or ..")
    return value


def _cursor(value: object) -> str:
    return decode_text(str(value))


def _each_once(values: list[str]) -> list[str]:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"holds {value!r} twice")
        seen.add(value)
    return values


CouponName = Annotated[
    str,
    AfterValidator(_in_a_path),
    Field(
        min_length=1,
        max_length=255,
        pattern=r"^[^/\x00-\x1f\x7f]+$",
        description="Name, unique among coupons. Without / and control characters.",
    ),
]
UserId = Annotated[
    Text, Field(min_length=1, max_length=255, description="Who claims.", examples=["ada"])
]
Remaining = Annotated[int, Field(ge=0, le=MAX_INTEGER, description="Pieces left.")]
Created = Annotated[datetime, Field(description="When, RFC 3339 in UTC.")]


class CouponIn(BaseModel):
    """A coupon to be created."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: CouponName = Field(examples=["SUMMER-2026"])
    amount: int = Field(ge=1, le=MAX_INTEGER, description="Pieces there are.", examples=[100])


class CouponPath(BaseModel):
    """Which coupon."""

    name: CouponName


class Coupon(BaseModel):
    """A coupon."""

    name: CouponName
    amount: int = Field(ge=1, le=MAX_INTEGER, description="Pieces there were.")
    remaining_amount: Remaining
    created_at: Created


class Claimant(BaseModel):
    """Who has claimed a coupon."""

    user_id: UserId
    created_at: Created


class CouponQuery(BaseModel):
    """Which page of coupons."""

    model_config = ConfigDict(extra="forbid")

    limit: Decimal = Field(20, ge=1, le=MAX_PAGE, description="Entries a page.")
    cursor: Annotated[
        str, BeforeValidator(_cursor), WithJsonSchema({"type": "string", "maxLength": 1400})
    ] = Field(default_factory=str, description="`next_cursor` of the page before. Opaque.")


class CouponList(BaseModel):
    """Some coupons in order of their names, and where the next ones begin."""

    coupons: list[Coupon]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last.")


class CouponPage(Coupon):
    """A coupon, with some of those who have claimed it, the first ones first."""

    claims: list[Claimant]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last.")


class ClaimIn(BaseModel):
    """One user's claim."""

    model_config = ConfigDict(strict=True, extra="forbid")

    user_id: UserId
    coupon_name: CouponName


class Claim(BaseModel):
    """A claim that was granted."""

    id: int = Field(ge=1, le=MAX_INTEGER)
    user_id: UserId
    coupon_name: CouponName
    created_at: Created


class BatchIn(BaseModel):
    """Claims of many users, to be granted in this order while there are pieces left."""

    model_config = ConfigDict(strict=True, extra="forbid")

    coupon_name: CouponName
    user_ids: Annotated[
        list[UserId], Field(min_length=1, max_length=MAX_BATCH), AfterValidator(_each_once)
    ] = Field(description="Each once.")


class Outcome(BaseModel):
    """What became of one claim of a batch."""

    user_id: UserId
    outcome: Literal["claimed", "already-claimed", "none-left"]


class BatchOutcome(BaseModel):
    """What became of a batch."""

    coupon_name: CouponName
    claimed: int = Field(ge=0, le=MAX_BATCH, description="Claims that were granted.")
    outcomes: list[Outcome] = Field(description="One for each user, in the order given.")
