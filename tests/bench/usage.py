"""Usage: events accepted and landed per second, and ingestion while a month is read."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import multiprocessing
import os
import re
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from plugins.module_utils.traffic import Address, PublicConnection
from tests.harness import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.sharedctypes import Synchronized

    from tests.harness import Stack

BATCHES = 100
BATCH = 10_000
CLIENTS = 4
ROUNDS = 5
SECONDS = 10
PER_SECOND = 40
METRICS = 20
DAYS = 30
READERS_NICE = 19

# In one more container of the API's service: the store alone, as durably as the API writes.
SCRIPT = """
import datetime, json, multiprocessing, sys, time, uuid

from compose_app.config import Settings
from compose_app.redis import Cache
from compose_app.usage.queue import EVENTS_PER_ENTRY, STREAM, UsageQueue, encode

clients, batches = json.loads(sys.argv[1])
settings = Settings.from_environ()
now = datetime.datetime.now(datetime.UTC)
entry = encode([(uuid.uuid4().hex, "bare", "m", 1, now) for _ in range(EVENTS_PER_ENTRY)])


def connected():
    password = settings.redis_queue_password.get_secret_value()
    return Cache(settings.redis_queue_url, password, "bench")


def client(start):
    queue = UsageQueue(connected())
    start.wait()
    for _ in range(batches // clients):
        queue.put([entry] * 10)


start = multiprocessing.Barrier(clients + 1)
jobs = [multiprocessing.Process(target=client, args=(start,)) for _ in range(clients)]
for job in jobs:
    job.start()
start.wait()
began = time.monotonic()
for job in jobs:
    job.join()
took = time.monotonic() - began
connected().execute(("DEL", STREAM))
print(json.dumps(batches // clients * clients * 10 * EVENTS_PER_ENTRY / took))
"""

MONTH = f"""
INSERT INTO usage_minutes
SELECT 'month', 'metric-' || m, date_trunc('minute', now()) - n * interval '1 minute', 1, 1
FROM generate_series(1, {METRICS}) AS m, generate_series(1, {DAYS} * 24 * 60) AS n
"""


@dataclass(frozen=True)
class Usage:
    """Events per second; p99 of one event's report in milliseconds, a pair a round."""

    accepted: float
    bare: float
    landed: float
    copied: float
    drained_seconds: float
    quiet_ms: list[float]
    busy_ms: list[float]
    rows_read: float

    @property
    def slowdown(self) -> float:
        """p99 while a month is read over p99 without, the median of the rounds."""
        pairs = zip(self.busy_ms, self.quiet_ms, strict=True)
        return statistics.median(busy / quiet for busy, quiet in pairs)


def measure(stack: Stack) -> Usage:
    processor = stack.one("processor")["Id"]
    stack.engine.run("docker", "stop", processor)
    before = _counted(stack)
    bare = _bare(stack)
    accepted = _accepted(stack)
    began = time.monotonic()
    stack.engine.run("docker", "start", processor)
    wait_for("the first events", lambda: _counted(stack) > before, 60, 0.1)
    landing, already = time.monotonic(), _counted(stack) - before
    wait_for("all events", lambda: _counted(stack) == before + BATCHES * BATCH, 600, 0.5)
    ended = time.monotonic()
    landed = (BATCHES * BATCH - already) / (ended - landing)
    copied = _copied(stack)
    _psql(stack, MONTH)
    _psql(stack, "ANALYZE usage_minutes")
    quiet, busy, rows = [], [], []
    for _ in range(ROUNDS):
        quiet.append(_p99(stack))
        with _readers(stack) as read:
            before = read()
            busy.append(_p99(stack))
            rows.append((read() - before) / SECONDS)
    return Usage(
        accepted, bare, landed, copied, ended - began, quiet, busy, statistics.median(rows)
    )


def _psql(stack: Stack, query: str) -> str:
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "app", "-XAtqc", query)
    return stack.execute("postgres", *psql)


def _counted(stack: Stack) -> int:
    return int(_psql(stack, "SELECT count(*) FROM usage_events"))


def _bare(stack: Stack) -> float:
    said = stack.compose(
        *("run", "--rm", "--no-deps", "--no-TTY"),
        *("--env", "PROMETHEUS_MULTIPROC_DIR=/tmp", stack.api_slot(), "python3", "-c", SCRIPT),
        json.dumps([CLIENTS, BATCHES]),
    )
    return float(said.splitlines()[-1])


def _event() -> dict[str, object]:
    return {
        "event_id": uuid.uuid4().hex,
        "tenant": "bench",
        "metric": "requests",
        "quantity": 1,
        "time": datetime.now(UTC).isoformat(),
    }


def _accepted(stack: Stack) -> float:
    bodies = [
        gzip.compress("\n".join(json.dumps(_event()) for _ in range(BATCH)).encode(), 1)
        for _ in range(BATCHES)
    ]
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}

    def send(body: bytes) -> None:
        answer = stack.site.request("POST", "/api/usage/events", data=body, headers=headers)
        assert answer.status_code == http.HTTPStatus.ACCEPTED, answer.text

    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, bodies))
    return BATCHES * BATCH / (time.monotonic() - began)


def _copied(stack: Stack) -> float:
    """Rows per second of a plain COPY, into a hypertable with the same columns and index."""
    rows = BATCHES * BATCH
    _psql(stack, "CREATE TABLE bench_events (LIKE usage_events INCLUDING CONSTRAINTS)")
    _psql(stack, "SELECT create_hypertable('bench_events', 'time')")
    _psql(stack, "CREATE INDEX ON bench_events (tenant, metric, time)")
    file = "/var/lib/postgresql/data/bench"
    _psql(stack, f"COPY (SELECT * FROM usage_events LIMIT {rows}) TO '{file}'")
    try:
        began = time.monotonic()
        _psql(stack, f"COPY bench_events FROM '{file}'")
        return rows / (time.monotonic() - began)
    finally:
        _psql(stack, "DROP TABLE bench_events")
        stack.execute("postgres", "rm", file)


def _connections(stack: Stack) -> Iterator[PublicConnection]:
    site = stack.site
    while True:
        yield PublicConnection(Address(site.address, site.https_port, site.name, "/"), 10)


def _p99(stack: Stack) -> float:
    """Of one event a request, at a steady pace; milliseconds from when each was due."""
    free = [connection for connection, _ in zip(_connections(stack), range(CLIENTS), strict=False)]
    times: list[float] = []
    start = time.monotonic() + 0.1

    def client(which: int) -> None:
        for turn in range(which, SECONDS * PER_SECOND, CLIENTS):
            due = start + turn / PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            body = json.dumps(_event())
            headers = {"Host": stack.site.name, "Content-Type": "application/json"}
            free[which].request("POST", "/api/usage/events", body, headers)
            answer = free[which].getresponse()
            answer.read()
            assert answer.status == http.HTTPStatus.ACCEPTED, answer.status
            times.append((time.monotonic() - due) * 1000)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    for connection in free:
        connection.close()
    return statistics.quantiles(times, n=100)[98]


@contextlib.contextmanager
def _readers(stack: Stack) -> Iterator[Callable[[], int]]:
    """Clients that page through the month; yields what tells how many rows they have read.

    Processes of their own, so that they take no turn from who measures, and niced: clients are
    elsewhere, and do not compete with the stack for its processors.
    """
    counters = [multiprocessing.Value("Q", 0) for _ in range(CLIENTS)]
    processes = [
        multiprocessing.Process(target=_read, args=(stack, counter), daemon=True)
        for counter in counters
    ]
    for process in processes:
        process.start()
    try:
        wait_for("every reader", lambda: all(counter.value for counter in counters), 30, 0.1)
        yield lambda: sum(counter.value for counter in counters)
        assert all(process.is_alive() for process in processes), "a reader has failed"
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _read(stack: Stack, rows: Synchronized[int]) -> None:
    """Page through the month, over and over; count the rows read, and make nothing of them."""
    os.nice(READERS_NICE)
    connection = next(_connections(stack))
    since = (datetime.now(UTC) - timedelta(days=DAYS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = f"/api/usage?tenant=month&bucket=minute&limit=1000&from={since}"
    cursor = ""
    while True:
        connection.request("GET", path + cursor, headers={"Host": stack.site.name})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == http.HTTPStatus.OK, body
        rows.value += body.count(b'"bucket":')
        following = re.search(rb'"next_cursor":"([^"]+)"', body)
        cursor = f"&cursor={following[1].decode()}" if following else ""
