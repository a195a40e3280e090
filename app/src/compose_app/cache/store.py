"""Cached values in Redis."""

from __future__ import annotations

import math
from typing import Any

import orjson

from compose_app.redis import Cache

PREFIX = "cache:"


class CacheStore:
    """JSON values under keys with a prefix of their own."""

    def __init__(self, redis: Cache) -> None:
        self._redis = redis

    def get(self, key: str) -> tuple[Any, int] | None:
        """The value and the seconds it has left, rounded up; None when absent or expired."""
        value, left = self._redis.execute(("GET", PREFIX + key), ("PTTL", PREFIX + key))
        if value is None or left <= 0:
            return None
        return orjson.loads(value), math.ceil(left / 1000)

    def put(self, key: str, value: Any, ttl: int) -> None:
        """Keep a JSON value for `ttl` seconds, in place of any other under this key."""
        self._redis.execute(("SET", PREFIX + key, orjson.dumps(value), "EX", ttl))
