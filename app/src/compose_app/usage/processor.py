"""`compose-app processor`: usage events from the queue into the database.

What is read from the queue stays there until it is committed; then it is acknowledged and deleted.
A processor that dies in between leaves it behind, another one takes it over after `IDLE`, and what
had been committed already counts no second time.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import psycopg
import redis
import structlog
from prometheus_client import Counter, Gauge, Histogram

from compose_app import loop
from compose_app.config import ProcessorSettings
from compose_app.usage.queue import FIELD, GROUP, STREAM, Undecodable, decode
from compose_app.usage.store import WHOLE, Queued, UsageStore

ENTRIES = 10
"""Entries, of a thousand events at most, taken into the database at once."""
BLOCK = 1000
"""Milliseconds to wait for entries."""
IDLE = 60_000
"""Milliseconds after which another's entries are taken over: it has died, or hangs."""
CLAIM_INTERVAL = 15.0
"""Seconds between looks for such entries."""
TIMEOUT = 5.0
"""Seconds to wait for an answer of Redis beyond BLOCK."""

_log = structlog.get_logger("compose_app.processor")

EVENTS = Counter("usage_events_processed_total", "Events taken from the queue.", ("outcome",))
BATCH = Histogram(
    "usage_batch_duration_seconds",
    "Time from a batch's arrival to its acknowledgement.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BACKLOG = Gauge("usage_queue_entries", "Entries in the queue, those in hand included.")
OLDEST = Gauge("usage_queue_oldest_seconds", "Age of the oldest entry in the queue; 0 without one.")

Entry = tuple[bytes, dict[bytes, bytes]]


class Processor:
    """Work of a loop."""

    outages = (redis.RedisError, psycopg.Error)

    def __init__(self, queue: redis.Redis, store: UsageStore, name: str) -> None:
        """Take the name by which the queue tells processors apart."""
        self._queue = queue
        self._store = store
        self._name = name
        self._claimed_at = 0.0
        self._unfinished = True

    def step(self) -> float:
        """Process one batch, waiting up to BLOCK for it."""
        self.batch()
        return 0

    def lost(self) -> None:
        """Look again at what is in hand, on another connection to the database."""
        self._unfinished = True
        self._store.close()

    def batch(self) -> int:
        """Process one batch, waiting up to BLOCK for it; return how many entries it had."""
        self._measure()
        try:
            entries = self._taken_over() or self._own() or self._read()
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._create()
            entries = self._read()
        if entries:
            with BATCH.time():
                self._process(entries)
        return len(entries)

    def _read(self, position: str = ">", block: int | None = BLOCK) -> list[Entry]:
        answer: Any = self._queue.xreadgroup(
            GROUP, self._name, {STREAM: position}, count=ENTRIES, block=block
        )
        return answer[0][1] if answer else []

    def _own(self) -> list[Entry]:
        """What this processor has had in hand since an attempt that failed, or its last start."""
        entries = self._read("0", None) if self._unfinished else []
        self._unfinished = bool(entries)
        return entries

    def _create(self) -> None:
        try:
            self._queue.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _taken_over(self) -> list[Entry]:
        if time.monotonic() < self._claimed_at + CLAIM_INTERVAL:
            return []
        answer: Any = self._queue.xautoclaim(STREAM, GROUP, self._name, IDLE, count=ENTRIES)
        entries: list[Entry] = answer[1]
        if not entries:
            self._claimed_at = time.monotonic()
        return entries

    def _process(self, entries: list[Entry]) -> None:
        events: list[Queued] = []
        unreadable = 0
        for raw, fields in entries:
            entry = raw.decode()
            content = fields.get(FIELD)
            try:
                decoded = decode(content)
            except Undecodable as error:
                self._store.set_aside(entry, WHOLE, content or b"", f"not readable: {error}")
                unreadable += 1
                continue
            events += [Queued(entry, place, event) for place, event in enumerate(decoded)]
        new, aside = self._store.add(events) if events else (0, 0)
        ids = [entry for entry, _ in entries]
        pipeline = self._queue.pipeline(transaction=True)
        pipeline.xack(STREAM, GROUP, *ids)
        pipeline.xdel(STREAM, *ids)
        pipeline.execute()
        EVENTS.labels("new").inc(new)
        EVENTS.labels("repeated").inc(len(events) - new - aside)
        EVENTS.labels("rejected").inc(aside + unreadable)
        if aside or unreadable:
            _log.warning("events set aside", events=aside, entries=unreadable)

    def _measure(self) -> None:
        BACKLOG.set(self._queue.xlen(STREAM))
        first: Any = self._queue.xrange(STREAM, count=1)
        born = int(first[0][0].split(b"-")[0]) / 1000 if first else time.time()
        OLDEST.set(max(0.0, time.time() - born))

    def leave(self) -> None:
        """Take the name back, unless something is in hand under it.

        Nobody takes back another's: what that one reads meanwhile would be in nobody's hand.
        """
        try:
            consumers: Any = self._queue.xinfo_consumers(STREAM, GROUP)
            for consumer in consumers:
                if consumer["name"] == self._name.encode() and not consumer["pending"]:
                    self._queue.xgroup_delconsumer(STREAM, GROUP, self._name)
        except redis.RedisError as error:
            _log.warning("queue not left", error=str(error))
        self._store.close()
        self._queue.close()


def connect(settings: ProcessorSettings) -> tuple[redis.Redis, UsageStore]:
    """Clients of both servers; nothing is connected yet."""
    queue = redis.Redis.from_url(
        settings.redis_queue_url,
        password=settings.redis_queue_password.get_secret_value(),
        socket_connect_timeout=TIMEOUT,
        socket_timeout=TIMEOUT + BLOCK / 1000,
        socket_keepalive=True,
        protocol=2,
    )
    store = UsageStore(settings.database_url, settings.database_password.get_secret_value())
    return queue, store


def main(settings: ProcessorSettings) -> int:
    """Process until SIGTERM or SIGINT; the batch in hand is finished first.

    Returns:
        0.
    """
    for outcome in ("new", "repeated", "rejected"):
        EVENTS.labels(outcome)  # from 0 on: an increase to 1 must show
    # Of the container: after a restart it goes on with what it had in hand.
    processor = Processor(*connect(settings), socket.gethostname())
    return loop.main(processor, "processor", settings)
