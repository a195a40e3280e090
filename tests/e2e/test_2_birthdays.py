"""BM-2 to BM-4: birthday messages from the public address to the email service, by RabbitMQ."""

from __future__ import annotations

import datetime
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.harness import port_open, wait_for

from .conftest import SETTINGS, site_yml

if TYPE_CHECKING:
    from tests.harness import Stack

pytestmark = pytest.mark.timeout(300, func_only=True)

PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "app", "-XAtqc")


def mailbox(stack: Stack) -> str:
    networks = stack.one("mailbox")["NetworkSettings"]["Networks"]
    return f"http://{networks[f'{stack.project}_backend']['IPAddress']}:8025"


def messages(stack: Stack, domain: str) -> list[dict[str, Any]]:
    found = requests.get(f"{mailbox(stack)}/messages", timeout=10).json()
    return [message for message in found if message["to"].endswith(f"@{domain}")]


def celebrate(stack: Stack, domain: str, users: int) -> None:
    """Have so many messages due."""
    stack.execute(
        "postgres",
        *PSQL,
        "WITH born AS (INSERT INTO users (first_name, last_name, birthday, time_zone, email)"
        f" SELECT 'Ada', 'L', '1990-01-01', 'UTC', n || '@{domain}'"
        f" FROM generate_series(1, {users}) n RETURNING id)"
        " INSERT INTO birthday_messages (user_id, year, due_at, next_at)"
        " SELECT id, 2020, now(), now() FROM born",
    )


def test_whom_a_message_was_missed(stack: Stack) -> None:
    """BM-2, BM-3: what came due while no scheduler ran is sent when one starts, and only once."""
    domain = f"{uuid.uuid4().hex}.example"
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1, hours=12)
    container = stack.one("scheduler")["Id"]
    stack.engine.run("docker", "stop", container)
    user = {"first_name": "Ada", "last_name": "Lovelace", "time_zone": "UTC"}
    for name, birthday in (
        ("due", f"1980-{yesterday:%m-%d}"),
        ("later", f"1980-{yesterday + datetime.timedelta(days=30):%m-%d}"),
    ):
        answer = stack.site.patiently(
            "POST", "/api/user", json={**user, "birthday": birthday, "email": f"{name}@{domain}"}
        )
        assert answer.status_code == 201, answer.text
    stack.execute(
        "postgres",
        *PSQL,
        "UPDATE users SET celebrated_from = now() - interval '5 days'"
        f" WHERE email LIKE '%@{domain}';"
        " UPDATE birthday_plan SET planned_until = now() - interval '4 days'",
    )
    stack.engine.run("docker", "start", container)
    stack.wait_healthy(60)
    wait_for("the message", lambda: len(messages(stack, domain)) == 1, 60, 0.5)
    stack.engine.run("docker", "restart", container)
    stack.wait_healthy(60)
    (message,) = messages(stack, domain)
    assert message["to"] == f"due@{domain}"
    assert message["subject"] == "Happy birthday, Ada!"
    assert message["requests"] == 1


@pytest.mark.parametrize("service", ["scheduler", "worker", "rabbitmq", "postgres"])
def test_killed_with_messages_under_way(stack: Stack, service: str) -> None:
    """BM-2, BM-4: after SIGKILL each message is still sent, and the service has it once."""
    domain = f"{uuid.uuid4().hex}.example"
    container = stack.one(service)["Id"]
    celebrate(stack, domain, 200)
    wait_for("some are sent", lambda: len(messages(stack, domain)) > 0, 60, 0.1)
    stack.engine.run("docker", "kill", "--signal=KILL", container)
    # Docker does not restart what was killed by command.
    stack.engine.run("docker", "start", container)
    stack.wait_healthy(90)
    # What a worker died with is tried again 40 s later.
    wait_for("all are sent", lambda: len(messages(stack, domain)) == 200, 120, 0.5)
    left = (
        "SELECT count(*) FROM birthday_messages JOIN users ON users.id = user_id"
        f" WHERE email LIKE '%@{domain}' AND state <> 'sent'"
    )
    wait_for("all are noted", lambda: stack.execute("postgres", *PSQL, left).strip() == "0", 90, 1)
    assert len({message["to"] for message in messages(stack, domain)}) == 200


def test_management_page(stack: Stack) -> None:
    """BM-4: on loopback alone, for the operator, who sees quorum queues and may change nothing."""
    port = int(SETTINGS["rabbitmq_management_port"])
    api = f"http://127.0.0.1:{port}/api"
    password = stack.engine.run("cat", f"{stack.directory}/secrets/operator_password").strip()
    signed_in: dict[str, Any] = {"auth": ("operator", password), "timeout": 10}
    queues = {item["name"]: item for item in requests.get(f"{api}/queues", **signed_in).json()}
    assert {"birthdays", "birthdays.dead"} <= queues.keys()
    assert {item["type"] for item in queues.values()} == {"quorum"}
    assert queues["birthdays"]["arguments"]["x-dead-letter-strategy"] == "at-least-once"
    for path in ("birthdays", "birthdays/contents"):
        refused = requests.delete(f"{api}/queues/app/{path}", **signed_in)
        assert refused.status_code in (401, 403), path
    assert requests.get(f"{api}/users", **signed_in).status_code == 401
    for account in (("guest", "guest"), ("operator", "wrong"), ("app", "app")):
        assert requests.get(f"{api}/whoami", auth=account, timeout=10).status_code == 401
    listening = stack.engine.run("ss", "-Htln", "sport", "=", f":{port}")
    assert {line.split()[3] for line in listening.splitlines()} == {f"127.0.0.1:{port}"}


def test_each_listener_is_on_its_own_network(stack: Stack) -> None:
    """FS-6, BM-4: who may read figures cannot reach the queues."""
    networks = stack.one("rabbitmq")["NetworkSettings"]["Networks"]
    backend, monitoring = (
        networks[f"{stack.project}_{name}"]["IPAddress"] for name in ("backend", "monitoring")
    )
    opened = {
        (name, port)
        for name, address in (("backend", backend), ("monitoring", monitoring))
        for port in (4369, 5672, 15672, 15692, 25672)
        if port_open(address, port)
    }
    assert opened == {("backend", 5672), ("backend", 15672), ("monitoring", 15692)}


def test_the_queue_outlives_its_container(stack: Stack) -> None:
    """BM-4: a message that was confirmed is there after the container was made anew."""
    worker = stack.one("worker")["Id"]
    stack.engine.run("docker", "stop", worker)
    domain = f"{uuid.uuid4().hex}.example"
    try:
        celebrate(stack, domain, 20)
        depth = ("rabbitmqctl", "--silent", "list_queues", "--vhost", "app", "name", "messages")

        def waiting() -> int:
            lines = stack.execute("rabbitmq", *depth).splitlines()
            return int(dict(line.split() for line in lines)["birthdays"])

        wait_for("all are queued", lambda: waiting() == 20, 60, 0.5)
        stack.engine.run("docker", "rm", "--force", stack.one("rabbitmq")["Id"])
        site_yml().succeeded()
        assert stack.one("rabbitmq")["State"]["Running"]
    finally:
        stack.engine.run("docker", "start", worker)
    stack.wait_healthy(60)
    wait_for("all are sent", lambda: len(messages(stack, domain)) == 20, 60, 0.5)
    assert {message["requests"] for message in messages(stack, domain)} == {1}
