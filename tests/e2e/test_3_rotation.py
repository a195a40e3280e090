"""A new value for every secret, under traffic; and the secrets are looked for wherever they may be.

All that is generated is rotated at once. Nobody else knows the values, so whatever holds one of
them, new or former, has got it from the stack.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
import redis
import requests

from tests.harness import playbook, wait_for
from tests.traffic import Traffic

from .conftest import DIRECTORY, ENGINE, INVENTORY, SETTINGS, site_yml
from .test_2_birthdays import celebrate, messages
from .test_2_usage import counted, events
from .test_3_releases import rollback, setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Run, Stack

pytestmark = pytest.mark.timeout(300, func_only=True)

POSTGRES = {"owner": "app_owner", "app": "app", "query": "app_query", "exporter": "exporter",
            "backup": "backup"}  # fmt: skip
# In PostgreSQL's words; the second is for an account that is not there.
REFUSED = "password authentication failed|no pg_hba.conf entry"


class Logins(NamedTuple):
    """How everybody signs in at some moment."""

    postgres: dict[str, tuple[str, str]]
    stores: dict[str, tuple[str, str]]
    rabbitmq: str
    operator: str

    @classmethod
    def now(cls, stack: Stack) -> Logins:
        return cls(
            {role: stack.login(f"postgres_{of}_password", role) for of, role in POSTGRES.items()},
            {name: stack.login(f"redis_{name}_password") for name in ("cache", "queue")},
            stack.login("rabbitmq_app_password")[1],
            stack.login("operator_password")[1],
        )

    @property
    def values(self) -> set[str]:
        accounts = [*self.postgres.values(), *self.stores.values()]
        return {self.rabbitmq, self.operator, *(password for _, password in accounts)}

    def connect(self, stack: Stack, role: str) -> psycopg.Connection:
        user, password = self.postgres[role]
        return psycopg.connect(
            host=address(stack, "postgres"), user=user, password=password, connect_timeout=5,
            dbname="postgres" if role == "backup" else "app",
        )  # fmt: skip

    def redis_client(self, stack: Stack, name: str) -> redis.Redis:
        user, password = self.stores[name]
        return redis.Redis(
            address(stack, f"redis-{name}"), username=user, password=password, socket_timeout=5
        )

    def accepted(self, stack: Stack) -> dict[str, bool]:
        """By whom these are accepted."""
        found: dict[str, bool] = {}
        for role in self.postgres:
            try:
                self.connect(stack, role).close()
                found[role] = True
            except psycopg.OperationalError as error:
                if not re.search(REFUSED, str(error)):
                    raise
                found[role] = False
        for name in self.stores:
            try:
                found[f"redis-{name}"] = bool(self.redis_client(stack, name).ping())
            except redis.AuthenticationError:
                found[f"redis-{name}"] = False
        script = "import pika, sys; pika.BlockingConnection(pika.URLParameters(sys.argv[1]))"
        url = f"amqp://app:{self.rabbitmq}@rabbitmq:5672/app"
        worker = stack.services()["worker"][0]["Id"]
        said = stack.engine.run("docker", "exec", worker, "python3", "-c", script, url, check=False)
        assert said == "" or "ACCESS_REFUSED" in said, said
        found["rabbitmq"] = not said
        signed_in: dict[str, Any] = {"auth": ("operator", self.operator), "timeout": 10}
        page = f"http://127.0.0.1:{SETTINGS['rabbitmq_management_port']}/api/whoami"
        found["management"] = requests.get(page, **signed_in).status_code == 200
        found["status"] = (
            stack.site.patiently("GET", "/status.json", **signed_in).status_code == 200
        )
        return found


def address(stack: Stack, service: str) -> str:
    networks = stack.one(service)["NetworkSettings"]["Networks"]
    return str(networks[f"{stack.project}_backend"]["IPAddress"])


class Reporter(threading.Thread):
    """Sends usage events one by one, whose acceptance needs the Redis of queues."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.stack, self.tenant, self.stop = stack, f"t-{uuid.uuid4().hex}", threading.Event()
        self.accepted, self.failures = 0, [""]

    def run(self) -> None:
        self.failures.clear()
        while not self.stop.wait(0.5):
            (item,) = events(self.tenant, 1)
            try:
                answer = self.stack.site.request("POST", "/api/usage/events", json=item)
                said = "" if answer.status_code == 202 else f"{answer.status_code} {answer.text}"
            except requests.RequestException as error:
                said = str(error)
            self.accepted += not said
            self.failures += [said] if said else []


class Rotated(NamedTuple):
    run: Run
    seconds: float
    traffic: Traffic
    reporter: Reporter
    before: Logins
    after: Logins
    thieves: list[Any]
    """Connections that were made with the former secrets."""
    domain: str


@pytest.fixture(scope="module")
def rotated(anything: Stack) -> Iterator[Rotated]:
    """Every secret that is generated, in one run that changes a setting, too."""
    stack = anything
    stack.wait_healthy()
    before = Logins.now(stack)
    thieves = [
        before.connect(stack, "app"), before.connect(stack, "backup"),
        before.redis_client(stack, "cache"), before.redis_client(stack, "queue"),
    ]  # fmt: skip
    reporter, domain = Reporter(stack), f"{uuid.uuid4().hex}.example"
    with Traffic(stack.site, per_second=5, long_requests=0) as traffic:
        reporter.start()
        time.sleep(1)
        celebrate(stack, domain, 1000)
        began = time.monotonic()
        run = playbook(
            INVENTORY, name="rotate.yml",
            variables={"rotate_secret": "all", "api_log_level": "debug"},
        )  # fmt: skip
        seconds = time.monotonic() - began
        time.sleep(1)
        reporter.stop.set()
        reporter.join()
    run.succeeded()
    yield Rotated(run, seconds, traffic, reporter, before, Logins.now(stack), thieves, domain)
    site_yml().succeeded()


def test_no_request_fails(rotated: Rotated, stack: Stack) -> None:
    """FS-8, BM-10: of clients that never try again; and what was accepted is there, once."""
    assert rotated.traffic.failures == []
    assert rotated.traffic.lost(stack) == []
    assert {answer.kind for answer in rotated.traffic.answers} == {"POST", "PUT"}
    assert rotated.reporter.failures == []
    print(f"{len(rotated.traffic.answers) + rotated.reporter.accepted} requests, 0 failed, "
          f"{rotated.seconds:.0f} s")  # fmt: skip
    tenant, accepted = rotated.reporter.tenant, rotated.reporter.accepted
    assert accepted > 20
    wait_for("all are counted", lambda: counted(stack, tenant) == accepted, 60, 0.5)


def test_messages_are_sent_once(rotated: Rotated, stack: Stack) -> None:
    """BM-2, FS-8: though RabbitMQ, scheduler and workers were made anew with them under way."""
    wait_for("all are sent", lambda: len(messages(stack, rotated.domain)) == 1000, 120, 0.5)
    assert len({message["to"] for message in messages(stack, rotated.domain)}) == 1000


def test_former_secrets_are_refused(rotated: Rotated, stack: Stack) -> None:
    """FS-8: by every server, over the network; who was let in with one is put out."""
    assert rotated.before.values.isdisjoint(rotated.after.values)
    assert set(rotated.after.accepted(stack).values()) == {True}
    assert set(rotated.before.accepted(stack).values()) == {False}
    for thief in rotated.thieves:
        with pytest.raises((psycopg.OperationalError, redis.RedisError)):
            thief.execute("SELECT 1") if isinstance(thief, psycopg.Connection) else thief.ping()
    roles = "SELECT count(*) FROM pg_roles WHERE rolcanlogin AND rolname <> 'postgres'"
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-XAtqc")
    assert stack.execute("postgres", *psql, roles).strip() == str(len(POSTGRES))


def test_back_with_the_secrets_of_today(rotated: Rotated, stack: Stack) -> None:
    """BM-10, FS-8: to a release of before, whose settings come back and whose secrets do not."""
    assert setting(stack, "API_LOG_LEVEL") == "debug"
    rollback().succeeded()
    stack.wait_healthy()
    assert setting(stack, "API_LOG_LEVEL") == "info"
    assert set(rotated.after.accepted(stack).values()) == {True}
    assert set(rotated.before.accepted(stack).values()) == {False}
    assert stack.site.patiently("GET", "/api/items").status_code == 200
    assert Logins.now(stack) == rotated.after


def test_a_restore_brings_no_account_back(rotated: Rotated, stack: Stack) -> None:
    """FS-7, FS-8: whatever a database of then holds, the set-up puts accounts right."""
    (login, _), then = rotated.after.postgres["app"], "of-then-and-long-forgotten"
    of_then = f"LOGIN PASSWORD '{then}'"
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-XAtqc")
    stack.execute(
        "postgres", *psql,
        f"CREATE ROLE app_0123456789ab {of_then} IN ROLE app; ALTER ROLE app {of_then};"
        f" ALTER ROLE {login} {of_then}",
    )  # fmt: skip
    accounts = [(login, then), ("app_0123456789ab", then), ("app", then)]
    former = [Logins({"app": account}, {}, "", "") for account in accounts]
    kept = [item.connect(stack, "app") for item in former]
    stack.engine.run("docker", "start", "--attach", f"{stack.project}-postgres-setup-1")
    assert set(rotated.after.accepted(stack).values()) == {True}
    for item in former:
        with pytest.raises(psycopg.OperationalError, match=REFUSED):
            item.connect(stack, "app")
    with pytest.raises(psycopg.OperationalError):
        kept[1].execute("SELECT 1")


def test_interrupted_and_typed_again(rotated: Rotated, stack: Stack) -> None:
    """FS-8: on the way both are accepted, also by a server that starts; the next run ends it."""
    switch = "TASK [stack : Switch to the slot that is healthy"
    secrets = "redis_queue_password, postgres_app_password"
    variables = {"rotate_secret": secrets}
    for _ in range(3):
        before = Logins.now(stack)
        run = playbook(INVENTORY, name="rotate.yml", variables=variables, interrupt_at=switch)
        if run.returncode:
            break
    assert run.returncode, "Ansible misses a Ctrl-C now and then, but not thrice"
    stack.compose("restart", "redis-queue")
    stack.wait_healthy()
    now = Logins.now(stack)
    assert now.postgres["app"] != before.postgres["app"]
    for logins in (before, now):
        assert set(logins.accepted(stack).values()) == {True}
    site_yml().succeeded()
    assert set(now.accepted(stack).values()) == {True}
    refused = {name for name, accepted in before.accepted(stack).items() if not accepted}
    assert refused == {"app", "redis-queue"}
    assert site_yml().succeeded().changed == 0


class Planted:
    """The values of secrets, looked for."""

    def __init__(self, directory: Path, values: set[str]) -> None:
        self.file = directory / "values"
        self.file.write_text("".join(f"{value}\n" for value in values))

    def places(self, *paths: Path | str) -> list[str]:
        """Files below these that hold one; also in what is compressed."""
        command = ["grep", "--recursive", "--files-with-matches", "--text", "--fixed-strings"]
        command += ["--no-messages", "--devices=skip", f"--file={self.file}", *map(str, paths)]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return found.splitlines()

    def within(self, content: bytes | str) -> bool:
        data = content.encode() if isinstance(content, str) else content
        return any(value.encode() in data for value in self.file.read_text().split())


@pytest.fixture
def planted(rotated: Rotated, tmp_path: Path) -> Planted:
    return Planted(tmp_path, rotated.before.values | rotated.after.values)


def test_planted_secrets_are_nowhere_else(
    rotated: Rotated, planted: Planted, stack: Stack, tmp_path: Path
) -> None:
    """FS-8: not in what Docker shows, in processes, logs, files, images, data or backups."""
    keeper = ("python3", "/etc/compose-stack/current/bin/keeper.py")
    for asked in ("backup", "flush"):
        stack.execute("backup", *keeper, asked)
    containers = stack.containers()
    assert planted.places(f"{DIRECTORY}/secrets"), "what is there is found"
    former = Planted(tmp_path, rotated.before.values)
    assert former.places(f"{DIRECTORY}/secrets") == []
    planted = Planted(tmp_path, rotated.before.values | rotated.after.values)

    assert not planted.within(rotated.run.output)
    assert not planted.within(json.dumps(containers))
    images = sorted({item["Image"] for item in containers.values()})
    assert not planted.within(ENGINE.run("docker", "image", "inspect", *images))
    for image in images:
        assert not planted.within(ENGINE.run("docker", "history", "--no-trunc", image))
    searched = f"docker save {' '.join(images)} | grep --text --fixed-strings -c -f {planted.file}"
    assert ENGINE.run("sh", "-c", searched, check=False, seconds=200).strip() == "0"

    for name, item in containers.items():
        log = subprocess.run(
            ["docker", "logs", item["Id"]], capture_output=True, timeout=60, check=True
        )
        assert not planted.within(log.stdout + log.stderr), name
        if not item["State"]["Running"]:
            continue
        for process in ENGINE.run("docker", "top", item["Id"], "-o", "pid").split()[1:]:
            for what in ("environ", "cmdline"):
                file = Path("/proc", process, what)
                if file.exists():
                    assert not planted.within(file.read_bytes()), (name, what)

    rest = [path for path in Path(DIRECTORY).iterdir() if path.name != "secrets"]
    logs = ["/var/log", "/run/log", f"/var/tmp/{stack.project}.stage"]
    assert planted.places(*rest, *logs) == []
    mounts = {
        mount["Source"]
        for item in containers.values()
        for mount in item["Mounts"]
        if mount["RW"] and mount["Source"] != f"{DIRECTORY}/run/sockets"
    }
    assert len(mounts) > 4
    assert planted.places(*mounts) == []
    packed = [
        path
        for mount in mounts
        for path in Path(mount).rglob("*")
        if path.is_file() and path.open("rb").read(2) == b"\x1f\x8b"
    ]
    assert packed, "WAL is kept compressed"
    for path in packed:
        assert not planted.within(gzip.decompress(path.read_bytes())), path
