"""What a cached value looks like from outside."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

MAX_TTL = 30 * 24 * 3600
"""Seconds."""

Ttl = Annotated[
    int, Field(ge=1, le=MAX_TTL, description="Time to live in seconds.", examples=[300])
]
Value = Annotated[JsonValue, Field(description="Any JSON value.", examples=[{"colour": "blue"}])]


class CachePath(BaseModel):
    """Which key."""

    key: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9._:@-]+$",
        description="Letters, digits and . _ : @ -",
    )


class CacheIn(BaseModel):
    """A value to be kept for a while."""

    model_config = ConfigDict(strict=True, extra="forbid")

    value: Value
    ttl: Ttl


class CacheEntry(BaseModel):
    """A value that is kept for a while."""

    key: str
    value: Value
    ttl: int = Field(ge=0, description="Seconds left.")
