"""Kinds of values that several domains take from outside."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from compose_app.cursor import decode

MAX_PAGE = 100
MAX_INTEGER = 2**31 - 1
MAX_ID = 2**63 - 1
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


Decimal = Annotated[int, BeforeValidator(_decimal)]
"""A whole number in a path or a query."""
Text = Annotated[str, AfterValidator(_no_nul)]
"""What PostgreSQL can keep as text."""


class PageQuery(BaseModel):
    """Which page of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: Decimal = Field(20, ge=1, le=MAX_PAGE, description="Entries a page.")
    cursor: Annotated[
        int, BeforeValidator(_cursor), WithJsonSchema({"type": "string", "maxLength": 64})
    ] = Field(default_factory=int, description="`next_cursor` of the page before. Opaque.")
