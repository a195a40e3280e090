"""The stream that usage events wait in, and how they are written there.

An entry holds many events, packed: a thousand with random ids take 40 kB, and come in one answer.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Sequence
from typing import Any, get_args

import orjson

from compose_app.dependencies import Unavailable
from compose_app.redis import Cache

STREAM = "usage-events"
GROUP = "processors"
FIELD = b"events"
EVENTS_PER_ENTRY = 1000
FSYNC_TIMEOUT = 500
"""Milliseconds to wait for the append-only file to reach the disk."""

Fields = tuple[str, str, str, float | int, datetime.datetime]
"""event_id, tenant, metric, quantity, time."""


class Undecodable(Exception):
    """An entry that no version of this module has written."""


def encode(events: Sequence[Fields]) -> bytes:
    """An entry's content."""
    return zlib.compress(orjson.dumps(events), 1)


def decode(content: bytes | None) -> list[list[Any]]:
    """Events of an entry: event_id, tenant, metric, quantity, time (RFC 3339).

    Raises:
        Undecodable: it has another form.
    """
    try:
        events = orjson.loads(zlib.decompress(content or b""))
    except (zlib.error, orjson.JSONDecodeError) as error:
        raise Undecodable(str(error)) from None
    if not isinstance(events, list) or not all(
        isinstance(event, list) and len(event) == len(get_args(Fields)) for event in events
    ):
        raise Undecodable("not a list of events")
    return events


class UsageQueue:
    """The end of the stream that the API writes to."""

    def __init__(self, redis: Cache) -> None:
        self._redis = redis

    def add(self, events: Sequence[Fields]) -> None:
        """Queue events; they are on the disk when this returns.

        Raises:
            compose_app.dependencies.Unavailable: they may or may not be queued. Sending them
                again does no harm.
        """
        self.put(
            [
                encode(events[start : start + EVENTS_PER_ENTRY])
                for start in range(0, len(events), EVENTS_PER_ENTRY)
            ]
        )

    def put(self, contents: Sequence[bytes]) -> None:
        """Queue entries; they are on the disk when this returns.

        Raises:
            compose_app.dependencies.Unavailable: as `add`.
        """
        entries = [("XADD", STREAM, "*", FIELD, content) for content in contents]
        # WAITAOF speaks of its own connection's writes, and returns without error on a time-out.
        *_, (local, _replicas) = self._redis.execute(*entries, ("WAITAOF", 1, 0, FSYNC_TIMEOUT))
        if local < 1:
            raise Unavailable("queue's disk")

    def waiting(self) -> int:
        """Count the entries that are not in the database yet.

        Raises:
            compose_app.dependencies.Unavailable: Redis does not answer.
        """
        (entries,) = self._redis.execute(("XLEN", STREAM))
        return int(entries)
