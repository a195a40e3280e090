"""PostgreSQL and Redis for the tests: real ones, in containers made for the occasion."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pika
import psycopg
import pytest
import redis
from flask.testing import FlaskClient

from compose_app import migrate
from compose_app.app import build_app
from compose_app.config import MigrationSettings, Settings
from compose_app.openapi import Api

OWNER, APP, READER = "owner-password", "app-password", "query-password"
CACHE, QUEUE, RABBITMQ = "cache-password", "queue-password", "rabbitmq-password"
SRC = Path(__file__).parents[1] / "src"

_POSTGRES = f"""
set -e
[ -s "$PGDATA/PG_VERSION" ] || initdb --username=postgres --auth-local=trust \
  --auth-host=scram-sha-256 --locale-provider=builtin --builtin-locale=C.UTF-8 --encoding=UTF8 \
  >/dev/null
grep -q 'host all' "$PGDATA/pg_hba.conf.done" 2>/dev/null || {{
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  echo 'host all' > "$PGDATA/pg_hba.conf.done"
  echo "shared_preload_libraries = 'timescaledb'" >> "$PGDATA/postgresql.conf"
  pg_ctl start -w -s -o "-c unix_socket_directories=/tmp -c listen_addresses=''"
  psql -q -h /tmp -U postgres -v ON_ERROR_STOP=1 <<'SQL'
CREATE ROLE app_owner LOGIN PASSWORD '{OWNER}';
CREATE ROLE app LOGIN PASSWORD '{APP}';
CREATE ROLE app_query LOGIN PASSWORD '{READER}';
CREATE DATABASE app OWNER app_owner;
\\connect app
CREATE EXTENSION timescaledb;
ALTER SCHEMA public OWNER TO app_owner;
GRANT USAGE ON SCHEMA public TO app, app_query;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA public
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO app;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA public
  GRANT USAGE, SELECT ON SEQUENCES TO app;
SQL
  pg_ctl stop -w -s -m fast
}}
exec postgres -c unix_socket_directories=/tmp -c listen_addresses='*' -c fsync=off \
  -c shared_buffers=32MB -c timescaledb.license=apache
"""


def _redis(password: str) -> str:
    return f"""exec redis-server - <<'EOF'
port 6379
save ""
dir /tmp
appendonly yes
appendfsync always
protected-mode no
user default off
user app on >{password} ~* &* +@all
EOF"""


def _rabbitmq() -> str:
    """The rights of the stack's own account, and no other account."""
    salt = b"salt"
    digest = hashlib.sha256(salt + RABBITMQ.encode()).digest()
    definitions = {
        "vhosts": [{"name": "app", "default_queue_type": "quorum"}],
        "users": [
            {
                "name": "app",
                "password_hash": base64.b64encode(salt + digest).decode(),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
        ],
        "permissions": [
            {
                "user": "app",
                "vhost": "app",
                "configure": "^birthdays",
                "write": r"^(birthdays|amq\.default)",
                "read": "^birthdays",
            }
        ],
    }
    return f"""
cat > /tmp/definitions.json <<'EOF'
{json.dumps(definitions)}
EOF
cat > /tmp/rabbitmq.conf <<'EOF'
load_definitions = /tmp/definitions.json
vm_memory_high_watermark.absolute = 300MiB
EOF
export RABBITMQ_CONFIG_FILE=/tmp/rabbitmq.conf RABBITMQ_NODENAME=rabbit@localhost
exec rabbitmq-server"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, probe: Callable[[], bool], seconds: float = 30) -> None:
    """Poll until `probe` is true; exceptions count as false."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            if probe():
                return
        except Exception as error:
            last = error
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {seconds} s: {last}")


def image(name: str) -> str:
    if image := os.environ.get(f"STACK_IMAGE_{name.upper()}"):
        return image
    listed = subprocess.run(
        ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"compose-stack/{name}"],
        capture_output=True,
        text=True,
        check=False,
    )
    images = listed.stdout.split()
    if not images:
        pytest.exit(
            f"No image for {name}: set STACK_IMAGE_{name.upper()}, or build compose-stack/{name} "
            f"with `make up` first. {listed.stderr.strip()}",
            returncode=3,
        )
    return images[0]


class Container:
    """A container of ours on a loopback port, which tests may stop, freeze and start again."""

    def __init__(self, name: str, user: str, port: int, script: str, *options: str) -> None:
        self.name = f"compose-app-test-{name}-{uuid.uuid4().hex[:8]}"
        reference = image(name)
        for attempt in range(3):
            self.port = free_port()
            try:
                self._docker(
                    *("run", "--detach", "--name", self.name, "--user", user, "--memory", "512m"),
                    *("--publish", f"127.0.0.1:{self.port}:{port}", *options),
                    *("--entrypoint", "/bin/sh", reference, "-c", script),
                )
            except AssertionError:
                # Created and not started, when another program has taken the port meanwhile.
                self.remove()
                if attempt == 2:
                    raise
            else:
                break

    def _docker(self, *args: str) -> str:
        done = subprocess.run(["docker", *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr}"
        return done.stdout

    def network(self) -> tuple[str, str]:
        """Its address in Docker's network, and that of this machine."""
        entry = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}"
        address, gateway = self._docker("inspect", "--format", entry, self.name).split()
        return address, gateway

    def pause(self) -> None:
        self._docker("pause", self.name)

    def unpause(self) -> None:
        self._docker("unpause", self.name)

    def stop(self) -> None:
        self._docker("stop", "--time", "10", self.name)

    def start(self) -> None:
        self._docker("start", self.name)

    def remove(self) -> None:
        self._docker("rm", "--force", "--volumes", self.name)


@dataclasses.dataclass
class Backends:
    """The services and the environment that leads to them."""

    postgres: Container
    cache: Container
    queue: Container
    environ: dict[str, str]

    def connect(self, role: str = "app_owner", password: str = OWNER) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.postgres.port,
            user=role,
            password=password,
            dbname="app",
            autocommit=True,
            connect_timeout=2,
        )

    def client(self) -> redis.Redis:
        return self._client(self.cache, CACHE)

    def queue_client(self) -> redis.Redis:
        return self._client(self.queue, QUEUE)

    @staticmethod
    def _client(container: Container, password: str) -> redis.Redis:
        return redis.Redis(
            port=container.port, username="app", password=password, socket_timeout=2, protocol=2
        )

    def wait(self) -> None:
        wait_for("PostgreSQL", lambda: self.connect().execute("SELECT 1").fetchone() == (1,), 60)
        wait_for("Redis", lambda: bool(self.client().ping()))
        wait_for("Redis for queues", lambda: bool(self.queue_client().ping()))


def _backends(secrets: Path) -> Iterator[Backends]:
    for name, secret in (
        ("owner", OWNER),
        ("app", APP),
        ("cache", CACHE),
        ("queue", QUEUE),
        ("query", READER),
    ):
        (secrets / name).write_text(secret)
    containers: list[Container] = []
    try:
        data = "/var/lib/postgresql/data/db"
        containers.append(
            Container("postgres", "70:70", 5432, _POSTGRES, "--env", f"PGDATA={data}")
        )
        for password in (CACHE, QUEUE):
            containers.append(Container("redis", "999:1000", 6379, _redis(password)))
        postgres, cache, queue = containers
        backends = Backends(
            postgres,
            cache,
            queue,
            {
                "DATABASE_URL": f"postgresql://app@127.0.0.1:{postgres.port}/app",
                "DATABASE_PASSWORD_FILE": str(secrets / "app"),
                "MIGRATION_DATABASE_URL": f"postgresql://app_owner@127.0.0.1:{postgres.port}/app",
                "MIGRATION_DATABASE_PASSWORD_FILE": str(secrets / "owner"),
                "REDIS_CACHE_URL": f"redis://app@127.0.0.1:{cache.port}/0",
                "REDIS_CACHE_PASSWORD_FILE": str(secrets / "cache"),
                "API_USAGE_EVENTS": "1",
                "REDIS_QUEUE_URL": f"redis://app@127.0.0.1:{queue.port}/0",
                "REDIS_QUEUE_PASSWORD_FILE": str(secrets / "queue"),
            },
        )
        backends.wait()
        assert migrate.main(MigrationSettings.from_environ(backends.environ)) == 0
        yield backends
    finally:
        for container in containers:
            container.remove()


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """PostgreSQL with the schema, and both Redis, for all tests together."""
    yield from _backends(tmp_path_factory.mktemp("secrets"))


@dataclasses.dataclass
class RabbitMQ:
    """The broker, and the environment that leads to it."""

    container: Container
    environ: dict[str, str]

    def connect(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(
            pika.ConnectionParameters(
                "127.0.0.1",
                self.container.port,
                "app",
                pika.PlainCredentials("app", RABBITMQ),
                socket_timeout=2,
            )
        )

    def wait(self) -> None:
        def answers() -> bool:
            self.connect().close()
            return True

        wait_for("RabbitMQ", answers, 90)


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """RabbitMQ, for all tests together."""
    secret = tmp_path_factory.mktemp("rabbitmq") / "password"
    secret.write_text(RABBITMQ)
    container = Container("rabbitmq", "999:999", 5672, _rabbitmq(), "--hostname", "rabbitmq")
    broker = RabbitMQ(
        container,
        {
            "AMQP_URL": f"amqp://app@127.0.0.1:{container.port}/app",
            "AMQP_PASSWORD_FILE": str(secret),
        },
    )
    try:
        broker.wait()
        yield broker
    finally:
        container.remove()


@pytest.fixture
def clean(backends: Backends) -> Backends:
    """The services, empty."""
    with backends.connect() as connection:
        connection.execute(
            "TRUNCATE items, coupons, claims, users, usage_events, usage_event_ids, usage_rejected,"
            " usage_changes, usage_minutes, usage_hours, usage_days, birthday_messages,"
            " birthday_outbox RESTART IDENTITY"
        )
        connection.execute("UPDATE birthday_plan SET planned_until = now()")
    backends.client().flushdb()
    backends.queue_client().delete("usage-events")
    return backends


@pytest.fixture(scope="session")
def app(backends: Backends) -> Api:
    return build_app(Settings.from_environ(backends.environ))


@pytest.fixture
def client(app: Api, clean: Backends) -> FlaskClient:
    return app.test_client()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclasses.dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Gunicorn:
    """The application as it runs in production, on a socket in a directory of its own."""

    def __init__(self, environ: dict[str, str], directory: Path, **overrides: str) -> None:
        self.directory = directory
        self.run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=directory))
        self.metrics_port = free_port()
        self.log = self.run_dir / "log"
        self.environ = {
            **{k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")},
            **environ,
            "PYTHONPATH": str(SRC),
            "PYTHONUNBUFFERED": "1",
            "API_SOCKET_DIR": str(directory),
            "API_RUN_DIR": str(self.run_dir),
            "PROMETHEUS_MULTIPROC_DIR": str(self.run_dir / "metrics"),
            "METRICS_PORT": str(self.metrics_port),
            **overrides,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "python:compose_app.gunicorn_conf"],
                env=self.environ,
                stdout=log,
                stderr=log,
            )

    @property
    def socket(self) -> Path:
        return Path((self.run_dir / "compose-app.socket").read_text())

    def ready(self) -> Gunicorn:
        wait_for(
            f"gunicorn to answer\n{self.log.read_text()}",
            lambda: self.request("GET", "/health/live").status == 200,
        )
        return self

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 20,
    ) -> Answer:
        started = time.monotonic()
        connection = _UnixConnection(self.socket, timeout)
        try:
            data = None if body is None else json.dumps(body)
            sent = {"Content-Type": "application/json"} if data else {}
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        return Answer(response.status, response.headers, content, time.monotonic() - started)

    def workers(self) -> list[int]:
        """Process ids of the master's children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def logs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def start_process(
    command: str, environ: dict[str, str], run_dir: Path, **overrides: str
) -> subprocess.Popen[bytes]:
    """One of the processes beside the API, as its container has it."""
    return subprocess.Popen(
        [sys.executable, "-m", "compose_app", command],
        env={
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            **environ,
            "PYTHONPATH": str(SRC),
            "METRICS_PORT": "0",
            "API_RUN_DIR": str(run_dir),
            **overrides,
        },
        stdout=subprocess.DEVNULL,
    )


StartGunicorn = Callable[..., Gunicorn]


@pytest.fixture
def gunicorn(clean: Backends) -> Iterator[StartGunicorn]:
    """Starts gunicorns that share one socket directory; ends them all."""
    directory = Path(tempfile.mkdtemp(prefix="app-"))  # short: a socket's path has 108 bytes
    started: list[Gunicorn] = []

    def start(wait: bool = True, **overrides: str) -> Gunicorn:
        server = Gunicorn(clean.environ, directory, **overrides)
        started.append(server)
        return server.ready() if wait else server

    try:
        yield start
    finally:
        for server in started:
            server.stop()
        shutil.rmtree(directory)
