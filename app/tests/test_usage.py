"""UT-1, UT-2: /api/usage/events and the processor."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compose_app import dependencies
from compose_app.config import ProcessorSettings
from compose_app.loop import Loop
from compose_app.usage import processor, queue, replay
from compose_app.usage.processor import Processor
from compose_app.usage.store import Queued
from conftest import Backends, StartGunicorn, start_process, wait_for

KEEP = {
    "USAGE_LATE_DAYS": "35",
    "USAGE_EVENTS_KEEP_DAYS": "90",
    "USAGE_MINUTES_KEEP_DAYS": "90",
    "USAGE_HOURS_KEEP_DAYS": "730",
}
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def event(**changes: Any) -> dict[str, Any]:
    return {
        "event_id": uuid.uuid4().hex,
        "tenant": "acme",
        "metric": "requests",
        "quantity": 1,
        "time": NOW.isoformat(),
        **changes,
    }


def problem(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["type"].removeprefix("/docs#problem-")


@pytest.fixture
def worker(clean: Backends) -> Iterator[Processor]:
    clients = processor.connect(ProcessorSettings.from_environ(clean.environ))
    yield Processor(*clients, "one")
    clients[0].close()
    clients[1].close()


def drain(worker: Processor) -> None:
    while worker.batch():
        pass


def counted(backends: Backends) -> list[tuple[str, str, str, float]]:
    with backends.connect() as connection:
        return [
            (tenant, metric, event_id, float(quantity))
            for tenant, metric, event_id, quantity in connection.execute(
                "SELECT tenant, metric, event_id, quantity FROM usage_events"
                " ORDER BY tenant, event_id"
            ).fetchall()
        ]


def rejected(backends: Backends) -> list[tuple[Any, ...]]:
    with backends.connect() as connection:
        return connection.execute(
            "SELECT id, place, reason, payload FROM usage_rejected ORDER BY id"
        ).fetchall()


def test_one_event_and_many(client: FlaskClient, clean: Backends, worker: Processor) -> None:
    """UT-1, UT-2: one event, a batch, and NDJSON, packed or not, are counted."""
    events = [event(event_id=f"e{number}", quantity=number) for number in range(8)]
    ndjson = b"\n".join(json.dumps(item).encode() for item in events[4:6]) + b"\r\n\n"
    answers = [
        client.post("/api/usage/events", json=events[0]),
        client.post("/api/usage/events", json={"events": events[1:4]}),
        client.post("/api/usage/events", data=ndjson, content_type="application/x-ndjson"),
        client.post(
            "/api/usage/events",
            data=gzip.compress(json.dumps({"events": events[6:]}).encode()),
            headers={"Content-Encoding": "gzip", "Content-Type": "application/json"},
        ),
    ]
    assert [(answer.status_code, answer.get_json()) for answer in answers] == [
        (202, {"accepted": count}) for count in (1, 3, 2, 2)
    ]
    drain(worker)
    assert counted(clean) == [("acme", "requests", f"e{n}", float(n)) for n in range(8)]
    assert clean.queue_client().xlen(queue.STREAM) == 0


def test_ten_thousand_at_once(client: FlaskClient, clean: Backends, worker: Processor) -> None:
    """UT-1: the largest batch goes packed into 1 MiB; one more is refused."""
    events = [event() for _ in range(10_001)]

    def send(items: list[dict[str, Any]]) -> Any:
        return client.post(
            "/api/usage/events",
            data=gzip.compress("\n".join(map(json.dumps, items)).encode()),
            headers={"Content-Encoding": "gzip", "Content-Type": "application/x-ndjson"},
        )

    assert problem(send(events)) == (413, "content-too-large")
    assert send(events[:-1]).status_code == 202
    drain(worker)
    assert len(counted(clean)) == 10_000


def test_sent_again(client: FlaskClient, clean: Backends, worker: Processor) -> None:
    """UT-1: the same id counts once in a body, in two, and after it has been counted."""
    first = event(event_id="same", quantity=2)
    again = {**first, "quantity": 2.0, "time": first["time"].replace("+00:00", "Z")}
    answer = client.post("/api/usage/events", json={"events": [first, again]})
    assert answer.get_json() == {"accepted": 1}
    client.post("/api/usage/events", json=again)
    drain(worker)
    client.post("/api/usage/events", json=first)
    client.post("/api/usage/events", json={**first, "tenant": "other"})
    drain(worker)
    assert counted(clean) == [
        ("acme", "requests", "same", 2.0),
        ("other", "requests", "same", 2.0),
    ]
    assert rejected(clean) == []


def test_another_event_under_the_same_id(
    client: FlaskClient, clean: Backends, worker: Processor
) -> None:
    """UT-1: in one body it is refused as a whole, later it is set aside and told why."""
    first = event(event_id="same")
    for change in ({"quantity": 2}, {"metric": "bytes"}, {"time": "2026-11-01T00:00:00Z"}):
        other = {**first, **change}
        answer = client.post("/api/usage/events", json={"events": [event(), first, other]})
        assert problem(answer) == (409, "event-id-taken")
        assert answer.get_json()["errors"][0]["location"] == ["body", "events", 2, "event_id"]
    assert clean.queue_client().xlen(queue.STREAM) == 0
    client.post("/api/usage/events", json=first)
    client.post("/api/usage/events", json={**first, "quantity": 2})
    drain(worker)
    client.post("/api/usage/events", json={**first, "metric": "bytes"})
    drain(worker)
    assert counted(clean) == [("acme", "requests", "same", 1.0)]
    assert [(reason, json.loads(payload)[2:4]) for _, _, reason, payload in rejected(clean)] == [
        ("another event of this tenant has the same id", ["requests", 2]),
        ("another event of this tenant has the same id", ["bytes", 1]),
    ]


BAD: list[tuple[str, list[Any]]] = [
    ("event_id", [None, 1, "", "a\0b", "x" * 129, ["a"]]),
    ("tenant", [None, "", "a b", "ä", "x" * 65, "-a"]),
    ("metric", [None, "", "a/b", True]),
    ("quantity", [None, "1", True, -1, 1_000_000_001, 0.0000001, 1e300, -0.5, []]),
    (
        "time",
        [
            *(None, 1, "", "now", "2026-11-01", "2026-11-01T00:00:00", "2026-W01-1T00:00:00Z"),
            *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-13-01T00:00:00Z"),
            (NOW + datetime.timedelta(hours=2)).isoformat(),
            (NOW - datetime.timedelta(days=36)).isoformat(),
            "2026-11-01T00:00:00\N{ARABIC-INDIC DIGIT ONE}Z",
        ],
    ),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, all_ in BAD for value in all_])
def test_bad_values(client: FlaskClient, clean: Backends, name: str, value: object) -> None:
    """UT-1: the field is named, and nothing of the body is queued."""
    answer = client.post("/api/usage/events", json={"events": [event(), event(**{name: value})]})
    assert problem(answer) == (422, "validation-error")
    locations = [error["location"][:4] for error in answer.get_json()["errors"]]
    assert locations
    assert all(location == ["body", "events", 1, name] for location in locations)
    assert clean.queue_client().xlen(queue.STREAM) == 0


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"", {"Content-Type": "application/json"}, (400, "invalid-json")),
        (b"[]", {"Content-Type": "application/json"}, (422, "validation-error")),
        (b'{"events": []}', {"Content-Type": "application/json"}, (422, "validation-error")),
        (b'{"events": 1}', {"Content-Type": "application/json"}, (422, "validation-error")),
        (
            b'{"events": [], "x": 1}',
            {"Content-Type": "application/json"},
            (422, "validation-error"),
        ),
        (b"\n\n", {"Content-Type": "application/x-ndjson"}, (422, "validation-error")),
        (b"{}\n{", {"Content-Type": "application/x-ndjson"}, (400, "invalid-json")),
        (b"\xff", {"Content-Type": "application/json"}, (400, "invalid-json")),
        (b"{}", {"Content-Type": "text/plain"}, (415, "unsupported-media-type")),
        (
            b"{}",
            {"Content-Type": "application/json", "Content-Encoding": "br"},
            (415, "unsupported-media-type"),
        ),
        (
            b"{}",
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            (400, "invalid-json"),
        ),
        (
            gzip.compress(b"{}")[:-4],
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            (400, "invalid-json"),
        ),
        (
            gzip.compress(b"{}") * 2,
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            (400, "invalid-json"),
        ),
        (
            gzip.compress(b" " * 9_000_000),
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            (413, "content-too-large"),
        ),
        (b" " * 1_100_000, {"Content-Type": "application/json"}, (413, "content-too-large")),
    ],
)
def test_bad_bodies(
    client: FlaskClient, body: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """UT-1: a body of the wrong kind, cut off, or a bomb."""
    assert problem(client.post("/api/usage/events", data=body, headers=headers)) == expected


def test_no_answer_without_fsync(client: FlaskClient, clean: Backends) -> None:
    """UT-1: 202 means on the disk: without an append-only file it is 503."""
    redis = clean.queue_client()
    redis.config_set("appendonly", "no")
    try:
        assert problem(client.post("/api/usage/events", json=event())) == (
            503,
            "service-unavailable",
        )
    finally:
        redis.config_set("appendonly", "yes")
        wait_for(
            "the append-only file",
            lambda: redis.info("persistence")["aof_rewrite_in_progress"] == 0,
        )
    time.sleep(dependencies.FAIL_FAST)
    assert client.post("/api/usage/events", json=event()).status_code == 202


def test_no_answer_while_fsync_takes_too_long(client: FlaskClient, clean: Backends) -> None:
    """UT-1: WAITAOF that times out is no error, and no promise either.

    An append-only file that is being made anew holds nothing yet; a large data set makes that slow.
    """
    redis = clean.queue_client()
    redis.config_set("appendonly", "no")
    redis.set("large", 1)
    redis.config_set("rdb-key-save-delay", 4_000_000)  # microseconds a key, for tests like this
    redis.config_set("appendonly", "yes")
    try:
        began = time.monotonic()
        assert problem(client.post("/api/usage/events", json=event())) == (
            503,
            "service-unavailable",
        )
        assert time.monotonic() - began < 3
    finally:
        wait_for(
            "the append-only file",
            lambda: redis.info("persistence")["aof_rewrite_in_progress"] == 0,
        )
        redis.config_set("rdb-key-save-delay", 0)
        redis.delete("large")
    time.sleep(dependencies.FAIL_FAST)
    assert client.post("/api/usage/events", json=event()).status_code == 202


def test_poison_is_set_aside_and_replayed(
    client: FlaskClient, clean: Backends, worker: Processor
) -> None:
    """UT-2: one event that the database refuses holds up none of the others, nor is it lost."""
    with clean.connect() as connection:
        connection.execute("ALTER TABLE usage_events ADD CONSTRAINT odd CHECK (metric <> 'odd')")
    try:
        events = [event(event_id=f"e{n}", metric="odd" if n == 3 else "even") for n in range(7)]
        client.post("/api/usage/events", json={"events": events})
        drain(worker)
        assert [row[2] for row in counted(clean)] == ["e0", "e1", "e2", "e4", "e5", "e6"]
        [(number, place, reason, _)] = rejected(clean)
        assert place == 3
        assert "violates check constraint" in reason
    finally:
        with clean.connect() as connection:
            connection.execute("ALTER TABLE usage_events DROP CONSTRAINT odd")
    settings_ = ProcessorSettings.from_environ(clean.environ)
    assert replay.main(settings_, number + 1) == 1
    assert replay.main(settings_, number) == 0
    drain(worker)
    assert len(counted(clean)) == 7
    assert rejected(clean) == []


def test_fault_of_all_events_is_none_of_theirs(
    client: FlaskClient, clean: Backends, worker: Processor, tmp_path: Path
) -> None:
    """UT-2: a table that is missing or closed leaves the events where they are."""
    client.post("/api/usage/events", json={"events": [event(), event()]})
    for break_, mend in (
        ("REVOKE INSERT ON usage_event_ids FROM app", "GRANT INSERT ON usage_event_ids TO app"),
        (
            "ALTER TABLE usage_event_ids RENAME TO elsewhere",
            "ALTER TABLE elsewhere RENAME TO usage_event_ids",
        ),
    ):
        with clean.connect() as connection:
            connection.execute(break_)
        turning = Loop(worker, "processor", tmp_path)
        runner = threading.Thread(target=turning.run)
        runner.start()
        try:
            time.sleep(2.5)
            assert runner.is_alive()
            assert rejected(clean) == []
            assert clean.queue_client().xlen(queue.STREAM) == 1
        finally:
            turning.stop()
            runner.join()
            with clean.connect() as connection:
                connection.execute(mend)
    turning = Loop(worker, "processor", tmp_path)
    runner = threading.Thread(target=turning.run)
    runner.start()
    try:
        wait_for("both are counted", lambda: len(counted(clean)) == 2)
    finally:
        turning.stop()
        runner.join()
    assert rejected(clean) == []


def test_what_nobody_can_read(clean: Backends, worker: Processor) -> None:
    """UT-2: foreign entries, and foreign events in an entry, are set aside with their reason."""
    redis = clean.queue_client()
    redis.xadd(queue.STREAM, {b"events": b"not packed"})
    redis.xadd(queue.STREAM, {b"other": b"1"})
    fields = ["e", "acme", "requests", 1, NOW.isoformat()]
    bad: list[list[Any]] = [
        ["e", "acme", "requests", "many", NOW.isoformat()],
        ["e", "acme", "requests", 1, "2026-11-01T00:00:00"],
        ["e", None, "requests", 1, NOW.isoformat()],
        ["a\0b", "acme", "requests", 1, NOW.isoformat()],
        ["f", "acme", "requests", 1e30, NOW.isoformat()],
        ["g", "acme", "requests", None, NOW.isoformat()],
    ]
    redis.xadd(queue.STREAM, {queue.FIELD: queue.encode([*bad, fields])})  # type: ignore[list-item]
    drain(worker)
    assert counted(clean) == [("acme", "requests", "e", 1.0)]
    assert sorted(place for _, place, _, _ in rejected(clean)) == [-1, -1, *range(6)]
    assert redis.xlen(queue.STREAM) == 0
    assert redis.xpending(queue.STREAM, queue.GROUP)["pending"] == 0


def test_committed_and_not_acknowledged(
    client: FlaskClient, clean: Backends, worker: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UT-2: what another processor has committed and not acknowledged counts no second time."""
    bad = event(event_id="one", quantity=3)
    client.post("/api/usage/events", json=event(event_id="one"))
    client.post("/api/usage/events", json=bad)
    redis = clean.queue_client()
    worker._create()
    taken: Any = redis.xreadgroup(queue.GROUP, "dead", {queue.STREAM: ">"})
    for entry, fields in taken[0][1]:
        worker._store.add(
            [Queued(entry.decode(), n, e) for n, e in enumerate(queue.decode(fields[queue.FIELD]))]
        )
    assert len(rejected(clean)) == 1
    assert worker.batch() == 0, "too early"
    monkeypatch.setattr(processor, "IDLE", 0)
    worker._claimed_at = 0.0
    assert worker.batch() == 2
    assert counted(clean) == [("acme", "requests", "one", 1.0)]
    assert len(rejected(clean)) == 1
    assert redis.xlen(queue.STREAM) == 0


_KNOWN = st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.sampled_from([1, 2]))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(bodies=st.lists(st.lists(_KNOWN, min_size=1, max_size=5), min_size=1, max_size=5))
def test_first_one_counts(
    client: FlaskClient,
    clean: Backends,
    worker: Processor,
    bodies: list[list[tuple[str, str, int]]],
) -> None:
    """UT-2: whatever is sent how often in whatever order, the first of each id counts, alone."""
    with clean.connect() as connection:
        connection.execute("TRUNCATE usage_events, usage_event_ids, usage_rejected")
    first: dict[tuple[str, str], int] = {}
    for body in bodies:
        events = [
            event(event_id=name, tenant=tenant, quantity=quantity)
            for name, tenant, quantity in body
        ]
        if client.post("/api/usage/events", json={"events": events}).status_code == 202:
            for name, tenant, quantity in body:
                first.setdefault((tenant, name), quantity)
    drain(worker)
    got = {(tenant, name): quantity for tenant, _, name, quantity in counted(clean)}
    assert got == first


def added(backends: Backends) -> int:
    """Events that are in the roll-ups."""
    with backends.connect() as connection:
        row = connection.execute("SELECT sum(events) FROM usage_days").fetchone()
        return int(row[0] or 0) if row else 0


def test_killed_at_random(gunicorn: StartGunicorn, clean: Backends, tmp_path: Path) -> None:
    """UT-2, UT-4: killed ten times under load, nothing acknowledged is lost or counts twice.

    Neither in the events nor in the roll-ups; the aggregator is killed as often as the processor.

    Clients that hear no 202 send the same again, as clients do.
    """
    server = gunicorn()
    kills = int(os.environ.get("PROCESSOR_KILLS", "10"))
    stop = threading.Event()
    accepted: dict[str, int] = {}
    draw = random.Random(5)

    def start(command: str) -> subprocess.Popen[bytes]:
        return start_process(command, clean.environ, tmp_path, **KEEP)

    def send(client: int) -> None:
        number = 0
        while not stop.is_set():
            events = [event(event_id=f"{client}-{number + n}", quantity=n) for n in range(200)]
            number += 200
            for _ in range(2):  # each twice, as if the first answer had been lost
                if server.request("POST", "/api/usage/events", {"events": events}).status == 202:
                    accepted.update({item["event_id"]: item["quantity"] for item in events})

    senders = [threading.Thread(target=send, args=(client,)) for client in range(2)]
    for sender in senders:
        sender.start()
    worked = 0
    try:
        for _ in range(kills):
            running = [
                start_process(each, clean.environ, tmp_path, **KEEP)
                for each in ("processor", "aggregator")
            ]
            before = len(counted(clean)), added(clean)
            wait_for(
                "progress",
                lambda seen=before: len(counted(clean)) > seen[0] and added(clean) > seen[1],  # type: ignore[misc]
            )
            for process in draw.sample(running, 2):
                time.sleep(draw.uniform(0, 0.3))
                worked += process.poll() is None
                process.send_signal(signal.SIGKILL)
                process.wait()
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    assert worked == 2 * kills
    running = [start(each) for each in ("processor", "aggregator")]
    try:
        wait_for("an empty queue", lambda: clean.queue_client().xlen(queue.STREAM) == 0, seconds=90)
        wait_for("roll-ups", lambda: added(clean) >= len(counted(clean)))
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(20) for process in running] == [0, 0]
    got = counted(clean)
    assert len(got) == len({row[2] for row in got}), "counted twice"
    assert {row[2]: row[3] for row in got} == accepted
    assert rejected(clean) == []
    with clean.connect() as connection:
        for table in ("usage_minutes", "usage_hours", "usage_days"):
            sums = f"SELECT sum(events), sum(quantity) FROM {table}"
            assert connection.execute(sums).fetchone() == (len(got), sum(row[3] for row in got))
