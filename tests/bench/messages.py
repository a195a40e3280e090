"""Birthday messages sent per second and worker, and what the broker takes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.harness import wait_for

if TYPE_CHECKING:
    from tests.harness import Stack

MESSAGES = 3000
PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "app", "-XAtqc")

# In the scheduler's container: the same publisher, without plan, outbox or database.
SCRIPT = f"""
import time
from compose_app.birthdays.broker import Broker
from compose_app.config import SchedulerSettings

settings = SchedulerSettings.from_environ()
queue = Broker(settings.amqp_url, settings.amqp_password.get_secret_value(), settings.queue)
queue.waiting()
began = time.monotonic()
queue.publish([0] * {MESSAGES})
print({MESSAGES} / (time.monotonic() - began))
"""


@dataclass(frozen=True)
class Found:
    """Messages per second."""

    published: float
    """Written down by the broker, one after the other."""
    queued: float
    """From the plan through the outbox into the queue."""
    sent: float
    """By one worker, from the queue to the answer of the email service noted."""


def measure(stack: Stack) -> Found:
    """With the worker's defaults, and the stand-in email service answering at once."""
    worker = stack.one("worker")["Id"]
    stack.engine.run("docker", "stop", worker)
    published = float(stack.execute("scheduler", "python3", "-c", SCRIPT))
    stack.execute("rabbitmq", "rabbitmqctl", "-q", "purge_queue", "--vhost", "app", "birthdays")
    stack.execute(
        "postgres",
        *PSQL,
        "WITH born AS (INSERT INTO users (first_name, last_name, birthday, time_zone, email)"
        " SELECT 'Ada', 'L', '1990-01-01', 'UTC', n || '@bench.example'"
        f" FROM generate_series(1, {MESSAGES}) n RETURNING id)"
        " INSERT INTO birthday_messages (user_id, year, due_at, next_at)"
        " SELECT id, 2020, now(), now() + interval '2 seconds' FROM born",
    )

    due = stack.execute("postgres", *PSQL, "SELECT now() + interval '2 seconds'").strip()

    def scalar(query: str) -> float:
        return float(stack.execute("postgres", *PSQL, query).strip() or 0)

    def depth() -> int:
        lines = stack.execute(
            "rabbitmq", "rabbitmqctl", "-q", "list_queues", "--vhost", "app", "name", "messages"
        ).splitlines()
        return int(dict(line.split()[:2] for line in lines).get("birthdays", 0))

    wait_for("all are queued", lambda: depth() == MESSAGES, 120, 0.1)
    queued = scalar(
        f"SELECT count(*) / extract(epoch FROM clock_timestamp() - '{due}'::timestamptz)"
        " FROM birthday_messages WHERE year = 2020"
    )
    stack.engine.run("docker", "start", worker)
    left = "SELECT count(*) FROM birthday_messages WHERE year = 2020 AND state <> 'sent'"
    wait_for("all are sent", lambda: scalar(left) == 0, 300, 1)
    sent = scalar(
        "SELECT count(*) / extract(epoch FROM max(sent_at) - min(sent_at))"
        " FROM birthday_messages WHERE year = 2020"
    )
    stack.execute("postgres", *PSQL, "DELETE FROM users WHERE email LIKE '%@bench.example'")
    return Found(published, queued, sent)
