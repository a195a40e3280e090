"""What health looks like from outside."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

State = Literal["ok", "unavailable"]


class Health(BaseModel):
    """Whether requests can be served, and what is missing if not."""

    status: State
    database: State
    redis: State


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"]
