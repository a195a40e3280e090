"""Asks the dependencies whether they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compose_app.db import Database
from compose_app.dependencies import Unavailable
from compose_app.health.schemas import State
from compose_app.redis import Cache


def _state(probe: Callable[[], object]) -> State:
    try:
        probe()
    except Unavailable:
        return "unavailable"
    return "ok"


def database_state(database: Database) -> State:
    """Takes at most 2 s."""
    return _state(lambda: database.query("SELECT 1 AS one"))


def redis_state(instances: Iterable[Cache]) -> State:
    """Takes at most 0.75 s when Redis is frozen: after one that fails, no other is asked."""

    def probe() -> None:
        for redis in instances:
            redis.execute(("PING",))

    return _state(probe)
