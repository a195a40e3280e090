"""What an item looks like from outside."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from compose_app.items.cursor import decode

MAX_ID = 2**63 - 1
MAX_INTEGER = 2**31 - 1
MAX_PAGE = 100
_DIGITS = re.compile(r"[0-9]{1,19}", re.ASCII)


def _decimal(value: object) -> int:
    """Digits only: int() would also take underscores, signs, spaces and other scripts' digits."""
    if not isinstance(value, str) or not _DIGITS.fullmatch(value):
        raise ValueError("must be a whole number in decimal digits")
    return int(value)


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL")
    return value


def _cursor(value: object) -> int:
    return decode(str(value))


Text = Annotated[str, AfterValidator(_no_nul)]
Name = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=200,
        pattern=r"\S",
        description="Name, unique among items.",
        examples=["Blue kettle"],
    ),
]
Description = Annotated[Text, Field(max_length=2000, description="Free text.")]
PriceCents = Annotated[
    int, Field(ge=0, le=MAX_INTEGER, description="Price in cents.", examples=[2499])
]
Quantity = Annotated[int, Field(ge=0, le=MAX_INTEGER, description="Pieces in stock.")]


class ItemIn(BaseModel):
    """An item to be created."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Name
    description: Description = ""
    price_cents: PriceCents
    quantity: Quantity = 0


class Item(BaseModel):
    """An item."""

    id: int = Field(ge=1, le=MAX_ID)
    name: Name
    description: Description
    price_cents: PriceCents
    quantity: Quantity
    created_at: datetime = Field(description="When it was created, RFC 3339 in UTC.")


class ItemPage(BaseModel):
    """Some items in order of their ids, and where the next ones begin."""

    items: list[Item]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last.")


class ItemPath(BaseModel):
    """Which item."""

    id: Annotated[int, BeforeValidator(_decimal)] = Field(ge=1, le=MAX_ID)


class ItemQuery(BaseModel):
    """Which page of items."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, BeforeValidator(_decimal)] = Field(
        20, ge=1, le=MAX_PAGE, description="Items a page."
    )
    cursor: Annotated[
        int, BeforeValidator(_cursor), WithJsonSchema({"type": "string", "maxLength": 64})
    ] = Field(default_factory=int, description="`next_cursor` of the page before. Opaque.")
