"""Usage events in PostgreSQL.

One transaction takes a batch in. An event counts when its digest is new to `usage_event_ids`;
whoever else has the same one in hand waits there for the outcome, so it counts once even when two
processors have it at once. Digests are inserted in their order: no two batches wait for each other.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
import psycopg

from compose_app.db import ProcessConnection

_STAGING = """
CREATE TEMPORARY TABLE IF NOT EXISTS usage_staging (
    id uuid, content uuid, entry text, place integer,
    event_id text, tenant text, metric text, quantity numeric, time timestamptz
) ON COMMIT DELETE ROWS
"""
_COPY = """
COPY usage_staging (id, content, entry, place, event_id, tenant, metric, quantity, time) FROM STDIN
"""
_COUNT = """
WITH fresh AS (
    INSERT INTO usage_event_ids (id, content, time)
    SELECT id, content, time FROM usage_staging ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
)
INSERT INTO usage_events (time, tenant, metric, quantity, event_id)
SELECT time, tenant, metric, quantity, event_id FROM usage_staging JOIN fresh USING (id)
"""
# A statement of its own: one that has waited for another's insert does not see that row yet.
_DIFFERENT = """
SELECT entry, place FROM usage_staging JOIN usage_event_ids USING (id)
WHERE usage_staging.content <> usage_event_ids.content
"""
_REJECT = """
INSERT INTO usage_rejected (entry, place, reason, payload)
VALUES (%(entry)s, %(place)s, %(reason)s, %(payload)s)
ON CONFLICT (entry, place) DO NOTHING
"""
_REJECTED = """
SELECT id, place, payload FROM usage_rejected
WHERE %(number)s::bigint IS NULL OR id = %(number)s ORDER BY id
"""
_ANOTHER = "another event of this tenant has the same id"
WHOLE = -1
"""Place of an entry that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Queued:
    """An event and where in the queue it was."""

    entry: str
    place: int
    fields: list[Any]
    """event_id, tenant, metric, quantity, time (RFC 3339)."""

    def row(self) -> tuple[Any, ...]:
        """What is copied.

        Raises:
            TypeError, ValueError: the fields are not those of an event.
        """
        event_id, tenant, metric, quantity, time = self.fields
        if not all(isinstance(value, str) for value in (event_id, tenant, metric, time)):
            raise ValueError("a name or the time is no text")
        moment = datetime.datetime.fromisoformat(time)
        if moment.tzinfo is None:
            raise ValueError("the time has no offset")
        return (
            _digest(tenant, event_id),
            content(metric, quantity, moment),
            self.entry,
            self.place,
            event_id,
            tenant,
            metric,
            _amount(quantity),
            moment,
        )

    @property
    def payload(self) -> bytes:
        """For whoever looks at it later."""
        return orjson.dumps(self.fields)


def _amount(quantity: float) -> str:
    return f"{float(quantity):.6f}"


def content(metric: str, quantity: float, time: datetime.datetime) -> uuid.UUID:
    """A digest of what must be the same when an event is sent again.

    Raises:
        TypeError, ValueError: the quantity is no number.
    """
    return _digest(metric, _amount(quantity), str(time.timestamp()))


def _digest(*parts: str) -> uuid.UUID:
    """BLAKE2b (RFC 7693) of 16 bytes: nobody finds two ids that have the same one."""
    text = "\0".join(parts).encode()
    return uuid.UUID(bytes=hashlib.blake2b(text, digest_size=16).digest())


class UsageStore:
    """A processor's connection to PostgreSQL. It is the processor who tries again."""

    def __init__(self, url: str, password: str) -> None:
        self._connection = ProcessConnection(url, password, "compose-app processor", first=_STAGING)
        self.close = self._connection.close

    def add(self, events: Sequence[Queued]) -> tuple[int, int]:
        """Count events, each once; set aside what cannot be. They are on the disk afterwards.

        Returns:
            How many were new, and how many were set aside. All others had been counted before.

        Raises:
            psycopg.OperationalError, psycopg.InterfaceError: the server does not answer; nothing,
                or everything, has happened.
            psycopg.ProgrammingError: a table is missing or closed, which is no event's fault;
                nothing has happened.
        """
        connection = self._connection.open()
        rows: dict[uuid.UUID, tuple[Any, ...]] = {}
        unfit: list[tuple[Queued, str]] = []
        by_position = {(event.entry, event.place): event for event in events}
        for event in events:
            try:
                row = event.row()
            except (TypeError, ValueError) as error:
                unfit.append((event, f"not an event: {error}"))
                continue
            if rows.setdefault(row[0], row)[1] != row[1]:
                unfit.append((event, _ANOTHER))
        try:
            with connection.transaction():
                counted = self._copy(connection, list(rows.values()))
                for position in connection.execute(_DIFFERENT).fetchall():
                    unfit.append((by_position[position], _ANOTHER))
                for event, reason in unfit:
                    self.set_aside(event.entry, event.place, event.payload, reason)
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.ProgrammingError):
            raise
        except psycopg.Error as error:
            return self._halves(events, error)
        return counted, len(unfit)

    def _halves(self, events: Sequence[Queued], error: psycopg.Error) -> tuple[int, int]:
        """Find the event that the database refuses, and set it aside alone."""
        if len(events) == 1:
            reason = f"refused by the database: {str(error).splitlines()[0]}"
            self.set_aside(events[0].entry, events[0].place, events[0].payload, reason)
            return 0, 1
        middle = len(events) // 2
        outcomes = [self.add(part) for part in (events[:middle], events[middle:])]
        return sum(new for new, _ in outcomes), sum(aside for _, aside in outcomes)

    def set_aside(self, entry: str, place: int, payload: bytes, reason: str) -> None:
        """Keep an event, or as place WHOLE an entry that cannot be read, once."""
        self._connection.open().execute(
            _REJECT, {"entry": entry, "place": place, "reason": reason, "payload": payload}
        )

    def rejected(self, number: int | None) -> list[tuple[int, int, bytes]]:
        """What was set aside, or one of it: id, place, payload."""
        return self._connection.open().execute(_REJECTED, {"number": number}).fetchall()

    def forget(self, number: int) -> None:
        """Drop what was set aside under this id."""
        self._connection.open().execute(
            "DELETE FROM usage_rejected WHERE id = %(number)s", {"number": number}
        )

    @staticmethod
    def _copy(connection: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]]) -> int:
        with connection.cursor() as cursor:
            with cursor.copy(_COPY) as copy:
                for row in rows:
                    copy.write_row(row)
            cursor.execute(_COUNT)
            return cursor.rowcount
