"""`compose-app aggregator`: keeps the roll-ups of usage right, and drops what is old.

Two may run, as during a release; one of them adds at a time.
"""

from __future__ import annotations

import datetime
import time

import psycopg
import structlog
from prometheus_client import Counter, Gauge

from compose_app import loop
from compose_app.config import AggregatorSettings
from compose_app.usage.rollups import PORTION, RollupStore

INTERVAL = 1.0
"""Seconds between looks for what has been counted."""
RETENTION_INTERVAL = 3600.0
"""Seconds between looks for what is old."""
IDS_AT_ONCE = 10_000
LATE_IN_THE_QUEUE = datetime.timedelta(days=7)
"""How long an event that was accepted may wait to be counted and still be known as sent twice."""

_log = structlog.get_logger("compose_app.aggregator")

ROLLED_UP = Counter(
    "usage_changes_rolled_up_total", "Changes of a minute's usage added to the roll-ups."
)
OLDEST = Gauge(
    "usage_rollup_oldest_seconds",
    "Since when an event that has been counted is in no roll-up; 0 without one.",
)
DROPPED = Counter("usage_chunks_dropped_total", "Chunks dropped for their age.", ("hypertable",))


class Aggregator:
    """Work of a loop."""

    outages = (psycopg.Error,)

    def __init__(self, store: RollupStore, settings: AggregatorSettings) -> None:
        self._store = store
        self._late_days = settings.late_days
        self._keep_days = {
            "usage_events": settings.events_keep_days,
            "usage_minutes": settings.minutes_keep_days,
            "usage_hours": settings.hours_keep_days,
        }
        for hypertable in self._keep_days:
            DROPPED.labels(hypertable)
        self._retention_due = time.monotonic()

    def step(self) -> float:
        """Add a portion to the roll-ups; when all is added, see to what is old."""
        # First: it must show what cannot be added.
        OLDEST.set(self._store.oldest())
        added = self._store.add()
        if added:
            ROLLED_UP.inc(added)
        if added == PORTION or self._drop_what_is_old():
            return 0
        return INTERVAL

    def _drop_what_is_old(self) -> bool:
        """Once an hour; return whether some is left."""
        if time.monotonic() < self._retention_due:
            return False
        now = datetime.datetime.now(datetime.UTC)
        for hypertable, days in self._keep_days.items():
            dropped = self._store.drop_chunks(hypertable, now - datetime.timedelta(days=days))
            DROPPED.labels(hypertable).inc(dropped)
            if dropped:
                _log.info("chunks dropped", hypertable=hypertable, chunks=dropped)
        before = now - datetime.timedelta(days=self._late_days) - LATE_IN_THE_QUEUE
        if self._store.forget_ids(before, IDS_AT_ONCE) == IDS_AT_ONCE:
            return True
        self._retention_due = time.monotonic() + RETENTION_INTERVAL
        return False

    def lost(self) -> None:
        """Connect anew."""
        self._store.close()

    def leave(self) -> None:
        """Disconnect."""
        self._store.close()


def main(settings: AggregatorSettings) -> int:
    """Aggregate until SIGTERM or SIGINT; the portion in hand is finished first.

    Returns:
        0.
    """
    store = RollupStore(settings.database_url, settings.database_password.get_secret_value())
    return loop.main(Aggregator(store, settings), "aggregator", settings)
