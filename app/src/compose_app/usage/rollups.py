"""Usage by minute, hour and day of UTC.

Whatever counts an event notes in the same transaction, by a trigger, what that adds to its minute.
Those notes are taken away and added to the roll-ups in one statement: they are in there once, come
late what may, and the events themselves need not be there any more.
"""

from __future__ import annotations

import datetime
from typing import Any, Literal, LiteralString

from psycopg.rows import DictRow

from compose_app.db import Database, ProcessConnection

PORTION = 50_000
"""Notes, each of a minute of one tenant's metric, added at once."""
LOCK_TIMEOUT = 5_000
"""Milliseconds to wait for a lock: dropping chunks wants one that queries would wait behind."""
_LOCK = 0x7573616765
"""Key of the advisory lock that whoever adds holds."""

_ADD = """
WITH taken AS (
    DELETE FROM usage_changes
    WHERE id IN (SELECT id FROM usage_changes ORDER BY id LIMIT %(portion)s)
    RETURNING tenant, metric, minute, quantity, events
), minutes AS (
    SELECT tenant, metric, minute AS bucket, sum(quantity) AS quantity, sum(events) AS events
    FROM taken GROUP BY tenant, metric, minute
), hours AS (
    SELECT tenant, metric, date_trunc('hour', bucket, 'UTC') AS bucket,
        sum(quantity) AS quantity, sum(events) AS events
    FROM minutes GROUP BY tenant, metric, date_trunc('hour', bucket, 'UTC')
), days AS (
    SELECT tenant, metric, date_trunc('day', bucket, 'UTC') AS bucket,
        sum(quantity) AS quantity, sum(events) AS events
    FROM hours GROUP BY tenant, metric, date_trunc('day', bucket, 'UTC')
), added_to_minutes AS (
    INSERT INTO usage_minutes (tenant, metric, bucket, quantity, events)
    SELECT tenant, metric, bucket, quantity, events FROM minutes
    ON CONFLICT (tenant, metric, bucket) DO UPDATE
    SET quantity = usage_minutes.quantity + excluded.quantity,
        events = usage_minutes.events + excluded.events
), added_to_hours AS (
    INSERT INTO usage_hours (tenant, metric, bucket, quantity, events)
    SELECT tenant, metric, bucket, quantity, events FROM hours
    ON CONFLICT (tenant, metric, bucket) DO UPDATE
    SET quantity = usage_hours.quantity + excluded.quantity,
        events = usage_hours.events + excluded.events
), added_to_days AS (
    INSERT INTO usage_days (tenant, metric, bucket, quantity, events)
    SELECT tenant, metric, bucket, quantity, events FROM days
    ON CONFLICT (tenant, metric, bucket) DO UPDATE
    SET quantity = usage_days.quantity + excluded.quantity,
        events = usage_days.events + excluded.events
)
SELECT count(*) FROM taken
"""
_OLDEST = """
SELECT coalesce(extract(epoch FROM clock_timestamp() - changed_at), 0)::float
FROM usage_changes ORDER BY id LIMIT 1
"""
_DROP_CHUNKS = "SELECT drop_usage_chunks(%(hypertable)s, %(before)s)"
_FORGET_IDS = """
DELETE FROM usage_event_ids WHERE id IN (
    SELECT id FROM usage_event_ids WHERE time < %(before)s ORDER BY time LIMIT %(portion)s
)
"""


Unit = Literal["minute", "hour", "day"]
# Nothing waiting: what is read next holds what has been counted by now.
_AS_OF = """
SELECT coalesce((SELECT changed_at FROM usage_changes ORDER BY id LIMIT 1), now()) AS as_of
"""


def _page(table: LiteralString) -> LiteralString:
    return f"""
        SELECT metric, bucket, quantity::float8 AS quantity, events FROM {table}
        WHERE tenant = %(tenant)s AND metric = coalesce(%(metric)s, metric)
            AND bucket >= %(start)s AND bucket < %(end)s
            AND (metric, bucket) > (%(after_metric)s, %(after_bucket)s)
        ORDER BY metric, bucket LIMIT %(limit)s
    """  # noqa: S608 - the table is one of those below


_PAGES: dict[Unit, LiteralString] = {
    "minute": _page("usage_minutes"),
    "hour": _page("usage_hours"),
    "day": _page("usage_days"),
}


class RollupReader:
    """Usage as the query service reads it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def as_of(self) -> datetime.datetime:
        """Since when events that were counted may be in no roll-up yet.

        Raises:
            compose_app.dependencies.Unavailable: the database does not answer.
        """
        moment: datetime.datetime = self._database.query(_AS_OF)[0]["as_of"]
        return moment

    def page(
        self,
        unit: Unit,
        tenant: str,
        metric: str | None,
        between: tuple[datetime.datetime, datetime.datetime],
        after: tuple[str, datetime.datetime],
        limit: int,
    ) -> list[DictRow]:
        """Buckets of a tenant in order of metric and bucket.

        Args:
            unit: how long a bucket is.
            tenant: whose.
            metric: which; None for every one.
            between: first moment of a bucket at the earliest, and what it is before.
            after: metric and bucket before the first.
            limit: how many at most.

        Returns:
            `metric`, `bucket` (its first moment), `quantity`, `events` of each.

        Raises:
            compose_app.dependencies.Unavailable: the database does not answer, or not in time.
        """
        return self._database.query(
            _PAGES[unit],
            {
                "tenant": tenant,
                "metric": metric,
                "start": between[0],
                "end": between[1],
                "after_metric": after[0],
                "after_bucket": after[1],
                "limit": limit,
            },
        )


class RollupStore:
    """The aggregator's connection to PostgreSQL. It is the aggregator who tries again."""

    def __init__(self, url: str, password: str) -> None:
        self._connection = ProcessConnection(
            url, password, "compose-app aggregator", f"-c lock_timeout={LOCK_TIMEOUT}"
        )
        self.close = self._connection.close

    def add(self) -> int | None:
        """Add to the roll-ups what has been counted since, PORTION notes at most.

        Returns:
            How many notes that were; None when another aggregator is at it.

        Raises:
            psycopg.Error: nothing, or all of it, has happened.
        """
        with self._connection.open().transaction():
            if not self._value("SELECT pg_try_advisory_xact_lock(%(key)s)", key=_LOCK):
                return None
            return int(self._value(_ADD, portion=PORTION))

    def oldest(self) -> float:
        """Seconds since the oldest event that is in no roll-up was counted; 0 without one.

        Raises:
            psycopg.Error: the server does not answer.
        """
        return float(self._value(_OLDEST) or 0)

    def drop_chunks(self, hypertable: str, before: datetime.datetime) -> int:
        """Drop whole chunks of a table of usage; return how many.

        Raises:
            psycopg.Error: none is dropped.
        """
        return int(self._value(_DROP_CHUNKS, hypertable=hypertable, before=before))

    def forget_ids(self, before: datetime.datetime, portion: int) -> int:
        """Forget ids of events before a moment, no more than a portion of them; return how many.

        Raises:
            psycopg.Error: none is forgotten.
        """
        parameters = {"before": before, "portion": portion}
        return self._connection.open().execute(_FORGET_IDS, parameters).rowcount

    def _value(self, statement: LiteralString, **parameters: Any) -> Any:
        row = self._connection.open().execute(statement, parameters).fetchone()
        return row[0] if row else None
