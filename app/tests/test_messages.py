"""BM-2, BM-3, BM-4: from the plan through RabbitMQ to an email service that misbehaves."""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import urllib3
from flask import Flask, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from compose_app import mailbox
from compose_app.birthdays import replay
from compose_app.birthdays import scheduler as scheduling
from compose_app.birthdays.breaker import Breaker
from compose_app.birthdays.broker import Broker
from compose_app.birthdays.email import EmailService, Failed, Refused
from compose_app.birthdays.messages import MessageStore
from compose_app.birthdays.scheduler import Scheduler
from compose_app.birthdays.store import UserStore
from compose_app.birthdays.worker import Worker, backoff
from compose_app.config import ConfigError, DatabaseSettings, SchedulerSettings, WorkerSettings
from compose_app.db import Database
from conftest import RABBITMQ, Backends, RabbitMQ, free_port, start_process, wait_for
from test_plan import ZONES

UTC = datetime.UTC
TODAY = datetime.datetime.now(UTC)
QUEUE, DEAD = "birthdays", "birthdays.dead"


class Server:
    """A WSGI application in this process, on a port of its own."""

    def __init__(self, app: Flask) -> None:
        quiet = type("Quiet", (WSGIRequestHandler,), {"log": lambda *_: None})
        self._server: BaseWSGIServer = make_server(
            "127.0.0.1", 0, app, threaded=True, request_handler=quiet
        )
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.port}"
        self.url = f"{self.address}/messages"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Mailbox(Server):
    """The stand-in email service."""

    def __init__(self) -> None:
        super().__init__(mailbox.build_app())

    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = urllib3.request("GET", self.url).json()
        return found

    def behave(self, **behaviour: Any) -> None:
        assert urllib3.request("PUT", f"{self.address}/behaviour", json=behaviour).status == 200


@pytest.fixture
def post() -> Iterator[Mailbox]:
    box = Mailbox()
    yield box
    box.stop()


class Stage:
    """A scheduler and a worker that turn when told to, and users whose day it is."""

    def __init__(self, backends: Backends, rabbitmq: RabbitMQ, post: Mailbox) -> None:
        self.backends = backends
        self.rabbitmq = rabbitmq
        self.post = post
        self.ahead = datetime.timedelta()
        self._works: list[Scheduler | Worker] = []
        with rabbitmq.connect() as connection:
            channel = connection.channel()
            channel.queue_delete(QUEUE)
            channel.queue_delete(DEAD)
        self.environ = {
            **backends.environ,
            **rabbitmq.environ,
            "EMAIL_URL": post.url,
            "BIRTHDAYS_TIMEOUT_SECONDS": "1",
        }

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(UTC) + self.ahead

    def _broker(self, prefetch: int = 1) -> Broker:
        return Broker(self.environ["AMQP_URL"], RABBITMQ, QUEUE, prefetch)

    def _store(self) -> MessageStore:
        return MessageStore(self.environ["DATABASE_URL"], "app-password", "test")

    def scheduler(self) -> Scheduler:
        settings = SchedulerSettings.from_environ(self.environ)
        made = Scheduler(self._store(), self._broker(), settings, self.now)
        self._works.append(made)
        return made

    def worker(self, **changes: str) -> Worker:
        settings = WorkerSettings.from_environ({**self.environ, **changes})
        service = EmailService(
            settings.email_url, None, settings.timeout_seconds, settings.concurrency
        )
        made = Worker(
            self._store(), self._broker(settings.concurrency), service, settings, self.now
        )
        self._works.append(made)
        return made

    def celebrate(self, users: int) -> None:
        """Users whose message came due in the last hour, planned."""
        due = datetime.datetime.now(UTC) - datetime.timedelta(minutes=30)
        with self.backends.connect() as connection:
            connection.execute(
                "INSERT INTO users (first_name, last_name, birthday, time_zone, email)"
                " SELECT 'Ada', 'L' || n, '1990-01-01', 'UTC', n || '@example.org'"
                " FROM generate_series(1, %s) AS n",
                (users,),
            )
            connection.execute(
                "INSERT INTO birthday_messages (user_id, year, due_at, next_at)"
                " SELECT id, 2027, %s, %s FROM users",
                (due, due),
            )

    def rows(self, columns: str = "state, attempts, error") -> list[tuple[Any, ...]]:
        with self.backends.connect() as connection:
            return connection.execute(
                f"SELECT {columns} FROM birthday_messages ORDER BY id"
            ).fetchall()

    def depth(self, queue: str) -> int:
        with self.rabbitmq.connect() as connection:
            declared = connection.channel().queue_declare(queue, passive=True)
            return int(declared.method.message_count)

    def leave(self) -> None:
        for work in self._works:
            work.leave()


@pytest.fixture
def stage(clean: Backends, rabbitmq: RabbitMQ, post: Mailbox) -> Iterator[Stage]:
    stage = Stage(clean, rabbitmq, post)
    yield stage
    stage.leave()


def turn(work: Scheduler | Worker, times: int = 1) -> None:
    for _ in range(times):
        work.step()


def bury(stage: Stage, scheduler: Scheduler) -> None:
    """Turn the scheduler until what was rejected has come by the queue of the dead."""

    def buried() -> bool:
        turn(scheduler)
        return "queued" not in {row[0] for row in stage.rows()}

    wait_for("dead messages", buried)


def test_each_is_sent_once(stage: Stage) -> None:
    """BM-2, BM-3: what is due goes out, with a key of its own; afterwards nothing is left."""
    stage.celebrate(10)
    scheduler, sender = stage.scheduler(), stage.worker()
    turn(scheduler)
    assert [row[0] for row in stage.rows()] == ["queued"] * 10
    turn(sender, 4)
    turn(scheduler, 2)
    turn(sender)
    assert stage.rows() == [("sent", 1, None)] * 10
    messages = stage.post.messages()
    assert {message["to"] for message in messages} == {f"{n}@example.org" for n in range(1, 11)}
    assert all(message["requests"] == 1 for message in messages)
    assert messages[0]["subject"] == "Happy birthday, Ada!"
    assert (stage.depth(QUEUE), stage.depth(DEAD)) == (0, 0)


def test_queues_are_quorum_queues(stage: Stage) -> None:
    """BM-4: replicated logs with a limit of deliveries; what is dead goes on, kept until it has."""
    turn(stage.scheduler())
    name = stage.rabbitmq.container.name
    listed = subprocess.run(
        [
            *("docker", "exec", "--env", "RABBITMQ_NODENAME=rabbit@localhost", name),
            *("rabbitmqctl", "--silent", "--formatter=json", "list_queues", "--vhost=app"),
            *("name", "type", "durable", "arguments"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    queues = {queue["name"]: queue for queue in json.loads(listed.stdout)}
    assert queues.keys() == {QUEUE, DEAD}
    assert all(queue["type"] == "quorum" and queue["durable"] for queue in queues.values())
    arguments = {name: value for name, _, value in queues[QUEUE]["arguments"]}
    assert arguments["x-delivery-limit"] == 20
    assert arguments["x-dead-letter-strategy"] == "at-least-once"


def test_failures_are_tried_again(stage: Stage) -> None:
    """BM-3: later, as the backoff says, and counted; then it is dead, and can be replayed."""
    stage.celebrate(1)
    stage.post.behave(failure=1)
    changes = {"BIRTHDAYS_ATTEMPTS": "3", "BIRTHDAYS_BREAKER_FAILURES": "100"}
    scheduler, sender = stage.scheduler(), stage.worker(**changes)
    for attempt, pause in ((1, 30), (2, 60)):
        turn(scheduler)
        turn(sender)
        assert stage.rows() == [("planned", attempt, "the email service answered 503")]
        next_at = stage.rows("next_at")[0][0] - stage.now()
        assert pause / 2 - 2 < next_at.total_seconds() <= pause
        turn(scheduler)
        assert stage.depth(QUEUE) == 0
        stage.ahead += datetime.timedelta(seconds=pause)
    turn(scheduler)
    turn(sender)
    bury(stage, scheduler)
    assert stage.rows() == [("dead", 3, "the email service answered 503")]
    assert (stage.depth(QUEUE), stage.depth(DEAD)) == (0, 0)

    stage.post.behave()
    settings = DatabaseSettings.from_environ(stage.environ)
    assert replay.main(settings, 999) == 1
    assert replay.main(settings, 1) == 0
    assert replay.main(settings, None) == 1
    turn(scheduler)
    turn(sender)
    assert stage.rows() == [("sent", 1, None)]


def test_refused_at_once(stage: Stage) -> None:
    """BM-3: what the service will never take is not tried again, and holds up nobody."""
    stage.celebrate(3)
    stage.post.behave(failure=1, status=422)
    scheduler, sender = stage.scheduler(), stage.worker()
    turn(scheduler)
    turn(sender, 2)
    bury(stage, scheduler)
    assert stage.rows() == [("dead", 1, "the email service answered 422")] * 3


def test_answers_that_are_lost(stage: Stage) -> None:
    """BM-2: the message was sent; it is asked for again with the same key, and not sent again."""
    stage.celebrate(4)
    stage.post.behave(duplicates=1)
    scheduler, sender = stage.scheduler(), stage.worker()
    turn(scheduler)
    turn(sender, 2)
    assert {row[0] for row in stage.rows()} == {"planned"}
    stage.post.behave()
    stage.ahead += datetime.timedelta(minutes=1)
    turn(scheduler)
    turn(sender, 2)
    assert {row[0] for row in stage.rows()} == {"sent"}
    assert [message["requests"] for message in stage.post.messages()] == [2] * 4


def test_breaker(stage: Stage) -> None:
    """BM-3: an outage costs no attempts, however long; one message at a time finds its end."""
    stage.celebrate(20)
    stage.post.behave(failure=1)
    scheduler = stage.scheduler()
    sender = stage.worker(
        BIRTHDAYS_ATTEMPTS="2",
        BIRTHDAYS_BREAKER_FAILURES="2",
        BIRTHDAYS_BREAKER_SECONDS="0.2",
        BIRTHDAYS_BACKOFF_SECONDS="0.1",
    )
    turn(scheduler)
    turn(sender)
    assert sum(row[1] for row in stage.rows()) == 4
    turn(sender)
    assert sum(row[1] for row in stage.rows()) == 4
    assert sender.step() > 0
    for _ in range(15):
        time.sleep(0.2)
        turn(sender)
    assert [row[0] for row in stage.rows()].count("planned") > 8
    assert sum(row[1] for row in stage.rows()) == 4
    stage.post.behave()
    deadline = time.monotonic() + 20
    while {row[0] for row in stage.rows()} != {"sent"} and time.monotonic() < deadline:
        turn(scheduler)
        turn(sender)
        time.sleep(0.05)
    assert {row[0] for row in stage.rows()} == {"sent"}
    assert all(message["requests"] == 1 for message in stage.post.messages())


def test_outage_without_end(stage: Stage) -> None:
    """BM-3: a message that the service will never take is given up, after a week."""
    stage.celebrate(1)
    stage.post.behave(failure=1)
    changes = {"BIRTHDAYS_ATTEMPTS": "3", "BIRTHDAYS_BREAKER_FAILURES": "1"}
    scheduler, sender = stage.scheduler(), stage.worker(**changes)
    sender._breaker._seconds = 0
    for _ in range(5):
        turn(scheduler)
        turn(sender)
        stage.ahead += datetime.timedelta(hours=1)
    assert stage.rows()[0][:2] == ("planned", 0)
    stage.ahead += datetime.timedelta(days=7)
    for _ in range(3):
        turn(scheduler)
        turn(sender)
        stage.ahead += datetime.timedelta(hours=1)
    bury(stage, scheduler)
    assert stage.rows() == [("dead", 3, "the email service answered 503")]


def test_a_slow_service(stage: Stage) -> None:
    """BM-3: no longer than the time-out; what comes of it counts once."""
    stage.celebrate(1)
    stage.post.behave(latency_seconds=2)
    scheduler, sender = stage.scheduler(), stage.worker()
    turn(scheduler)
    started = time.monotonic()
    turn(sender)
    assert time.monotonic() - started < 1.9
    assert stage.rows()[0][:2] == ("planned", 1)
    stage.post.behave()
    stage.ahead += datetime.timedelta(minutes=1)
    turn(scheduler)
    turn(sender)
    assert stage.rows() == [("sent", 2, None)]
    wait_for("the slow one", lambda: [m["requests"] for m in stage.post.messages()] == [2])


def test_worker_dies_with_a_message_in_hand(stage: Stage) -> None:
    """BM-2: another one tries when the time in hand is over, and not before."""
    stage.celebrate(1)
    scheduler = stage.scheduler()
    turn(scheduler)
    store = stage._store()
    assert len(store.claim([1], stage.now(), 30)) == 1
    store.close()
    sender = stage.worker()
    turn(sender)
    assert stage.post.messages() == []
    assert stage.rows("state, attempts") == [("planned", 1)]
    turn(scheduler)
    assert stage.depth(QUEUE) == 0
    stage.ahead += datetime.timedelta(seconds=31)
    turn(scheduler)
    turn(sender)
    assert stage.rows() == [("sent", 2, None)]


def test_killer_of_workers(stage: Stage) -> None:
    """BM-3: a message that workers die of is given up."""
    stage.celebrate(1)
    scheduler = stage.scheduler()
    sender = stage.worker(BIRTHDAYS_ATTEMPTS="2")
    store = stage._store()
    for _ in range(2):
        turn(scheduler)
        assert len(store.claim([1], stage.now(), 30)) == 1
        turn(sender)
        stage.ahead += datetime.timedelta(seconds=31)
    store.close()
    turn(scheduler)
    turn(sender)
    bury(stage, scheduler)
    assert stage.rows() == [("dead", 3, "workers have died of it")]
    assert stage.post.messages() == []


def test_given_up_by_the_queue(stage: Stage) -> None:
    """BM-3: delivered too often, it comes by the dead-letter queue, and is sent all the same."""
    stage.celebrate(1)
    scheduler = stage.scheduler()
    turn(scheduler)
    with stage.rabbitmq.connect() as connection:
        channel = connection.channel()
        channel.basic_publish("", QUEUE, b"\xff\x00 no message")
        for _ in range(60):
            method, _, _ = channel.basic_get(QUEUE)
            if method is None:
                break
            channel.basic_nack(method.delivery_tag, requeue=True)
    wait_for("dead letters", lambda: stage.depth(DEAD) == 2)
    turn(scheduler, 2)
    assert stage.depth(DEAD) == 0
    turn(stage.worker(), 2)
    assert stage.rows() == [("sent", 1, None)]


def test_database_away(stage: Stage) -> None:
    """BM-3: nothing is taken that could not be settled."""
    stage.celebrate(3)
    turn(stage.scheduler())
    sender = stage.worker()
    sender._store = MessageStore(f"postgresql://app@127.0.0.1:{free_port()}/app", "x", "test")
    with pytest.raises(psycopg.OperationalError):
        turn(sender)
    assert stage.depth(QUEUE) == 3


def test_database_refuses_for_long(stage: Stage) -> None:
    """BM-2: messages are taken and given back more often than the queue allows, and none dies."""
    stage.celebrate(6)
    scheduler, sender = stage.scheduler(), stage.worker()
    turn(scheduler)
    with stage.backends.connect() as connection:
        connection.execute("REVOKE UPDATE ON birthday_messages FROM app")
        try:
            for _ in range(30):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    turn(sender)
                sender.lost()
        finally:
            connection.execute("GRANT UPDATE ON birthday_messages TO app")
    wait_for("dead letters", lambda: stage.depth(DEAD) > 0)

    def sent() -> bool:
        turn(scheduler)
        turn(sender)
        return {row[0] for row in stage.rows()} == {"sent"}

    wait_for("all are sent", sent)
    assert all(message["requests"] == 1 for message in stage.post.messages())


def test_what_is_no_message(stage: Stage) -> None:
    """BM-3: a worker leaves it to the queue of the dead."""
    turn(stage.scheduler())
    with stage.rabbitmq.connect() as connection:
        for body in (b"", b"x", b"-1", b"9" * 30, b"4711"):
            connection.channel().basic_publish("", QUEUE, body)
    sender = stage.worker()
    turn(sender, 2)
    assert stage.depth(QUEUE) == 0
    # 4711 could have been a message, of a user who is gone.
    wait_for("dead letters", lambda: stage.depth(DEAD) == 4)


def test_broker_loses_everything(stage: Stage) -> None:
    """BM-2: what was in the queue is found missing, and sent."""
    stage.celebrate(5)
    scheduler = stage.scheduler()
    turn(scheduler)
    with stage.rabbitmq.connect() as connection:
        connection.channel().queue_purge(QUEUE)
    scheduler._lost_due = 0
    turn(scheduler)
    assert {row[0] for row in stage.rows()} == {"queued"}
    stage.ahead += datetime.timedelta(hours=1, seconds=1)
    scheduler._lost_due = 0
    turn(scheduler, 2)
    turn(stage.worker(), 2)
    assert {row[0] for row in stage.rows()} == {"sent"}


def test_one_scheduler_acts(stage: Stage) -> None:
    """BM-2: by a lock of the database; the other one takes over when it is gone."""
    stage.celebrate(1)
    first, second = stage.scheduler(), stage.scheduler()
    while first.step() == 0:  # plans day by day
        pass
    with stage.backends.connect() as connection:
        connection.execute("UPDATE birthday_messages SET state = 'planned'")
    turn(second, 3)
    assert {row[0] for row in stage.rows()} == {"planned"}
    first.lost()
    turn(second)
    assert {row[0] for row in stage.rows()} == {"queued"}
    turn(first)
    with stage.backends.connect() as connection:
        connection.execute("UPDATE birthday_messages SET state = 'planned'")
    turn(first)
    assert {row[0] for row in stage.rows()} == {"planned"}


def test_figures_in_an_outage(stage: Stage) -> None:
    """BM-3: what was overdue and dead before it goes for as long as nobody can look."""
    stage.celebrate(3)
    with stage.backends.connect() as connection:
        connection.execute(
            "UPDATE birthday_messages SET state = 'dead'"
            " WHERE id = (SELECT min(id) FROM birthday_messages)"
        )
    first, second = stage.scheduler(), stage.scheduler()

    def figures() -> tuple[float, float, float]:
        gauges = (scheduling.ACTIVE, scheduling.OVERDUE, scheduling.DEAD)
        active, overdue, dead = (gauge._value.get() for gauge in gauges)
        return active, overdue, dead

    first.step()
    active, overdue, dead = figures()
    assert (active, dead) == (1, 1)
    assert overdue >= 1800
    store = first._store
    first._store = MessageStore(f"postgresql://app@127.0.0.1:{free_port()}/app", "x", "test")
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            first.step()
        first.lost()
        assert figures() == (0, overdue, 1)
    store.close()
    second.step()
    first._store = store
    first.step()
    assert figures() == (0, 0, 0), "who stands by leaves them to the one that acts"


@pytest.mark.parametrize("way", ["stop", "pause"])
def test_broker_away(stage: Stage, way: str) -> None:
    """BM-3: nothing is lost, and no restart is needed when it is back."""
    stage.celebrate(3)
    scheduler, sender = stage.scheduler(), stage.worker()
    turn(scheduler)
    container = stage.rabbitmq.container
    container.stop() if way == "stop" else container.pause()
    try:
        for work in (scheduler, sender):
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    work.step()
                except work.outages:
                    work.lost()
                    break
                time.sleep(0.2)
            else:
                pytest.fail("nothing was noticed")
    finally:
        container.start() if way == "stop" else container.unpause()
    stage.rabbitmq.wait()
    deadline = time.monotonic() + 60
    while {row[0] for row in stage.rows()} != {"sent"} and time.monotonic() < deadline:
        for work in (scheduler, sender):
            try:
                work.step()
            except work.outages:
                work.lost()
        time.sleep(0.1)
    assert {row[0] for row in stage.rows()} == {"sent"}
    assert all(message["requests"] == 1 for message in stage.post.messages())


def test_addresses_of_today(stage: Stage) -> None:
    """BM-2: who changes name or address after the message was queued gets it there; BM-1."""
    stage.celebrate(2)
    scheduler = stage.scheduler()
    turn(scheduler)
    database = Database(stage.environ["DATABASE_URL"], "app-password")
    users = UserStore(database)
    row = users.get(1)
    assert row
    users.replace(
        1,
        {
            "first_name": "Grace",
            "last_name": row["last_name"],
            "birthday": row["birthday"],
            "time_zone": row["time_zone"],
            "email": "grace@example.org",
        },
    )
    users.delete(2)
    database.close()
    turn(stage.worker(), 2)
    messages = stage.post.messages()
    assert [(m["to"], m["subject"]) for m in messages] == [
        ("grace@example.org", "Happy birthday, Grace!")
    ]
    assert stage.depth(QUEUE) == 0


def test_breaker_counts() -> None:
    """BM-3: so many failures in a row; closed again by one success."""
    clock = [0.0]
    breaker = Breaker(2, 10, lambda: clock[0])
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert (breaker.closed, breaker.wait) == (True, 0)
    breaker.failed()
    assert (breaker.closed, breaker.wait) == (False, 10)
    clock[0] = 10
    assert (breaker.closed, breaker.wait) == (False, 0)
    breaker.failed()
    assert breaker.wait == 10
    clock[0] = 30
    breaker.succeeded()
    assert (breaker.closed, breaker.wait) == (True, 0)


def test_backoff() -> None:
    """BM-3: doubled up to the most; between half of it and the whole."""
    low: Callable[[float, float], float] = lambda _low, _high: _low  # noqa: E731
    high: Callable[[float, float], float] = lambda _low, high: high  # noqa: E731
    assert [backoff(n, 30, 3600, high) for n in (1, 2, 3, 8, 1000)] == [30, 60, 120, 3600, 3600]
    assert [backoff(n, 30, 3600, low) for n in (1, 2, 8)] == [15, 30, 1800]
    assert len({backoff(3, 30, 3600) for _ in range(10)}) > 5


def test_service_says_when(post: Mailbox) -> None:
    """BM-3: refusals, failures, and an answer that is no answer."""
    service = EmailService(post.url, None, 1, 1)
    service.send("k", "a@example.org", "s", "t")
    for status, kind in (
        (400, Refused),
        (404, Refused),
        (409, Failed),
        (429, Failed),
        (408, Failed),
        (500, Failed),
    ):
        post.behave(failure=1, status=status)
        with pytest.raises(kind, match=str(status)):
            service.send("k", "a@example.org", "s", "t")
    service.close()


def test_service_that_is_gone() -> None:
    """BM-3: is no reason to give a message up."""
    box = Mailbox()
    service = EmailService(box.url, None, 1, 1)
    box.stop()
    with pytest.raises(Failed, match="no answer"):
        service.send("k", "a@example.org", "s", "t")
    service.close()


def test_what_the_service_is_told_and_tells() -> None:
    """BM-3: who asks, for which message, and when to come again."""
    app, asked = Flask(__name__), []

    @app.post("/messages")
    def answer() -> tuple[str, int, dict[str, str]]:
        asked.append((dict(request.headers), request.get_json()))
        return "", 429, {"Retry-After": "7"}

    server = Server(app)
    service = EmailService(server.url, "hunter2", 1, 1)
    with pytest.raises(Failed) as raised:
        service.send("birthday-1-2027", "a@example.org", "s", "t")
    service.close()
    server.stop()
    assert raised.value.after == 7
    ((headers, body),) = asked
    assert headers["Authorization"] == "Bearer hunter2"
    assert headers["Idempotency-Key"] == "birthday-1-2027"
    assert body == {"to": "a@example.org", "subject": "s", "text": "t"}


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("EMAIL_URL", "", "not set"),
        ("EMAIL_URL", "smtp://mail", "http"),
        ("AMQP_URL", "amqp://app:secret@rabbitmq/app", "password"),
        ("BIRTHDAYS_CONCURRENCY", "0", "greater"),
        ("BIRTHDAYS_TIMEOUT_SECONDS", "60", "less"),
        ("BIRTHDAYS_QUEUE", "a b", "pattern"),
    ],
)
def test_wrong_settings(tmp_path: Path, name: str, value: str, word: str) -> None:
    """BM-3: named, before anything starts."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    good = {
        "DATABASE_URL": "postgresql://app@postgres/app",
        "DATABASE_PASSWORD_FILE": str(secret),
        "AMQP_URL": "amqp://app@rabbitmq/app",
        "AMQP_PASSWORD_FILE": str(secret),
        "EMAIL_URL": "http://mailbox:8025/messages",
    }
    WorkerSettings.from_environ(good)
    with pytest.raises(ConfigError, match=f"{name}.*{word}"):
        WorkerSettings.from_environ({**good, name: value})


IMPATIENT = {
    "BIRTHDAYS_INTERVAL_SECONDS": "0.1",
    "BIRTHDAYS_BACKOFF_SECONDS": "0.2",
    "BIRTHDAYS_BACKOFF_MAX_SECONDS": "1",
    "BIRTHDAYS_BREAKER_SECONDS": "0.2",
    "BIRTHDAYS_ATTEMPTS": "100",
}


def _catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.timeout(1800)
def test_killed_at_random(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-2: users in all zones, kills, changes of zone, lost answers: each exactly one message."""
    users = int(os.environ.get("BIRTHDAY_USERS", "400"))
    kills = int(os.environ.get("BIRTHDAY_KILLS", "8"))
    draw = random.Random(7)
    yesterday = (datetime.datetime.now(UTC) - datetime.timedelta(days=2)).date()
    zones = sorted(ZONES)
    with stage.backends.connect() as connection, connection.cursor() as cursor:
        # All of them celebrated the day before yesterday; nobody has planned since before then.
        cursor.executemany(
            "INSERT INTO users"
            " (first_name, last_name, birthday, time_zone, email, celebrated_from)"
            " VALUES ('Ada', %s, %s, %s, %s, now() - interval '9 days')",
            [
                (
                    str(n),
                    f"1990-{yesterday:%m-%d}",
                    draw.choice(zones),
                    f"{n}@example.org",
                )
                for n in range(users)
            ],
        )
        connection.execute("UPDATE birthday_plan SET planned_until = now() - interval '4 days'")
    stage.post.behave(failure=0.1, duplicates=0.1, latency_seconds=0.1)
    stop = threading.Event()
    changed = 0

    def move() -> None:
        nonlocal changed
        database = Database(stage.environ["DATABASE_URL"], "app-password")
        store = UserStore(database)
        while not stop.is_set():
            row = store.get(draw.randint(1, users))
            if row:
                store.replace(
                    row["id"],
                    {
                        "first_name": row["first_name"],
                        "last_name": row["last_name"],
                        "birthday": row["birthday"],
                        "time_zone": draw.choice(zones),
                        "email": row["email"],
                    },
                )
                changed += 1
            time.sleep(0.005)
        database.close()

    mover = threading.Thread(target=move)
    mover.start()
    commands = ("scheduler", "scheduler", "worker", "worker")

    def start(command: str) -> subprocess.Popen[bytes]:
        return start_process(command, stage.environ, tmp_path, **IMPATIENT)

    running = [start(command) for command in commands]
    try:
        for _ in range(kills):
            place = draw.randrange(len(commands))
            time.sleep(draw.uniform(0.2, 0.8))
            running[place].send_signal(signal.SIGKILL)
            running[place].wait()
            # What was in its hand need not wait for as long as it must in earnest.
            with stage.backends.connect() as connection:
                connection.execute(
                    "UPDATE birthday_messages SET next_at = now(), claimed_until = now()"
                    " WHERE claimed_until IS NOT NULL AND attempts > 0 AND state = 'planned'"
                )
            running[place] = start(commands[place])
        wait_for(
            "all messages",
            lambda: [row[0] for row in stage.rows("state")] == ["sent"] * users,
            60 + users / 20,
        )
    finally:
        stop.set()
        mover.join()
        for process in running:
            wait_for("a handler", lambda process=process: _catches_sigterm(process.pid))  # type: ignore[misc]
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for process in running]
    assert codes == [0] * len(commands)
    messages = stage.post.messages()
    assert len(messages) == len({message["to"] for message in messages}) == users
    assert changed > 0
    requests = sum(message["requests"] for message in messages)
    # One in ten for its lost answer, and what was in hand of those killed.
    assert users < requests < users * 1.25 + kills * 4
