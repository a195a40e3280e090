"""What an item looks like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from compose_app.fields import MAX_ID, MAX_INTEGER, Decimal, Text

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

    id: Decimal = Field(ge=1, le=MAX_ID)
