"""The stack that faults are made in, and the hands that make them."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import requests

from tests.harness import Engine, Site, Stack, playbook, wait_for
from tests.monitoring import MailServer, Prometheus, Receiver
from tests.roles.tls.authority import issue

if TYPE_CHECKING:
    from collections.abc import Iterator

INVENTORY = "inventories/test"
PROJECT = "compose-stack-prove"
DIRECTORY = Path("/opt", PROJECT)
DATA = Path("/srv", PROJECT)
FLOOD = f"{PROJECT}-flood"
SUBNET = "172.31.253.0/24"
GATEWAY = "172.31.253.1"
HTTP_PORT, HTTPS_PORT = 38080, 38443
ENGINE = Engine()


@dataclass
class World:
    """Where faults are made and alerts arrive."""

    stack: Stack
    receiver: Receiver
    mail: MailServer

    @property
    def prometheus(self) -> Prometheus:
        return Prometheus(self.stack)

    def psql(self, *statements: str, check: bool = True) -> str:
        commands = [word for statement in statements for word in ("-c", statement)]
        return self.stack.execute("postgres", *PSQL, "-d", "app", *commands, check=check)

    @contextlib.contextmanager
    def session(self, *statements: str) -> Iterator[None]:
        """A connection to the database that has said something and stays."""
        name = f"{PROJECT}-postgres-1"
        with subprocess.Popen(
            ["docker", "exec", "-i", name, *PSQL, "-d", "app"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("".join(f"{text};\n" for text in (*statements, "SELECT 'said'")))
            process.stdin.flush()
            try:
                assert any("said" in line for line in process.stdout), statements
                yield
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                process.kill()

    @contextlib.contextmanager
    def without_postgres(self) -> Iterator[str]:
        """While it is stopped: the image to work on its files with."""
        image = str(self.stack.one("postgres")["Image"])
        self.stack.compose("stop", "postgres")
        try:
            yield image
        finally:
            self.stack.compose("start", "postgres")
            ready = ("docker", "exec", f"{PROJECT}-postgres-1", *READY)
            wait_for("PostgreSQL", lambda: ENGINE.succeeds(*ready), 60, 0.1)

    def redis(self, name: str) -> redis.Redis:
        """A client of the application's account."""
        networks = self.stack.one(f"redis-{name}")["NetworkSettings"]["Networks"]
        user, password = self.stack.login(f"redis_{name}_password")
        return redis.Redis(
            networks[f"{PROJECT}_backend"]["IPAddress"],
            username=user,
            password=password,
            socket_timeout=5,
        )

    def serve_certificate(self, days: float) -> None:
        """Put a certificate in place as a person would, by hand."""
        directory = DIRECTORY / "tls" / "live" / "current"
        issued = issue("localhost", days=days)
        for name, text in (("fullchain.pem", issued.pem), ("privkey.pem", issued.key_pem())):
            (directory / name).write_text(text)
        self.stack.compose("kill", "--signal=HUP", "nginx")

    @contextlib.contextmanager
    def requests(
        self, per_second: float, *what: tuple[str, str, Any], clients: int = 6
    ) -> Iterator[None]:
        """Requests at a steady rate, each of what is asked in its turn, whatever the answers."""
        stop = threading.Event()
        turns = itertools.cycle(what)
        lock = threading.Lock()

        def ask() -> None:
            with requests.Session() as session:
                session.trust_env = False
                session.verify = False
                while not stop.wait(clients / per_second):
                    with lock:
                        method, path, body = next(turns)
                    with contextlib.suppress(requests.RequestException):
                        session.request(
                            method,
                            f"https://127.0.0.1:{HTTPS_PORT}{path}",
                            data=body,
                            headers={"Host": "localhost", "Content-Type": "application/json"},
                            timeout=30,
                        )

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()


PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-AtqX", "-v", "ON_ERROR_STOP=1")
READY = ("pg_isready", "-q", "-h", "/run/postgresql", "-U", "postgres", "-d", "app")


def mounts() -> None:
    """Small file systems of their own, so that filling one fills no disk of the machine."""
    for name, owner, megabytes in (
        ("redis/cache", "999:1000", 48),
        ("redis/queue", "999:1000", 96),
        ("prometheus", "65534:65534", 160),
    ):
        path = DATA / name
        path.mkdir(parents=True, exist_ok=True)
        uid, gid = owner.split(":")
        options = f"size={megabytes}m,uid={uid},gid={gid},mode=0700"
        ENGINE.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path))
    # Real disks for the alerts on disks, which leave memory file systems out.
    for name, arguments in (("blocks", ["-m", "0"]), ("inodes", ["-N", "256"])):
        image, path = DATA / f"{name}.img", DATA / name
        path.mkdir(exist_ok=True)
        ENGINE.run("truncate", "-s", "64M", str(image))
        ENGINE.run("mkfs.ext4", "-q", "-F", *arguments, str(image))
        ENGINE.run("mount", "-o", "loop", str(image), str(path))


def unmount() -> None:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in reversed([item for item in mounted if item.startswith(f"{DATA}/")]):
        ENGINE.run("umount", "-l", path)
    ENGINE.run("rm", "-rf", "--one-file-system", str(DATA))


@contextlib.contextmanager
def deployed(certificates: Path, *, keep: bool = False) -> Iterator[World]:
    """A stack with monitoring, whose alerts come to us; removed at the end."""
    receiver, mail = Receiver(), MailServer()
    authority = issue("authority", authority=True)
    certificate, key = issue("localhost", by=authority).save(certificates, authority)
    ca = certificates / "ca.pem"
    ca.write_text(authority.pem)
    here = f"http://{GATEWAY}:{receiver.port}"
    variables: dict[str, Any] = {
        "stack_project": PROJECT,
        "stack_dir": str(DIRECTORY),
        "stack_profiles": ["monitoring"],
        "stack_frontend_subnet": SUBNET,
        "nginx_http_port": HTTP_PORT,
        "nginx_https_port": HTTPS_PORT,
        "nginx_rate_limit": 20,
        "postgres_data_dir": f"/dev/shm/{PROJECT}/postgres",
        "postgres_max_connections": 60,
        "redis_data_dir": str(DATA / "redis"),
        "rabbitmq_data_dir": f"/dev/shm/{PROJECT}/rabbitmq",
        "rabbitmq_management_port": HTTPS_PORT + 1,
        "offsite_repository": str(DATA / "offsite"),
        "redis_queue_memory_mb": 64,
        "prometheus_data_dir": str(DATA / "prometheus"),
        "prometheus_retention_size_mb": 64,
        "tls_mode": "provided",
        "tls_certificate_file": certificate,
        "tls_private_key_file": key,
        "alertmanager_webhook_url": f"{here}/alerts",
        "alertmanager_deadman_url": f"{here}/deadman",
        "alertmanager_slack_channel": "#alerts",
        "alertmanager_mail_to": "operator@localhost",
        "alertmanager_mail_smarthost": f"{GATEWAY}:{mail.port}",
        "alertmanager_mail_require_tls": False,
        "secrets_values": {"alertmanager_slack_url": f"{here}/slack"},
    }

    def run(name: str, **more: Any) -> None:
        playbook(INVENTORY, name=name, variables={**variables, **more}, seconds=900).succeeded()

    def clean() -> None:
        # Before: a directory that something is mounted on cannot be removed.
        unmount()
        # Of a proof that was interrupted.
        ENGINE.run("docker", "rm", "--force", FLOOD, check=False)
        run("clean.yml", clean_confirm=PROJECT)

    run("build.yml")
    clean()
    try:
        mounts()
        run("site.yml")
        site = Site("127.0.0.1", HTTPS_PORT, HTTP_PORT, "localhost", ca)
        stack = Stack(ENGINE, PROJECT, str(DIRECTORY), site)
        stack.wait_healthy(120)
        world = World(stack, receiver, mail)
        # What rises must have been measured before it rises.
        measured = "min(count_over_time(up[5m])) >= 3 and min(up) == 1"
        wait_for("every target measured", lambda: world.prometheus.query(measured), 120, 1)
        yield world
    finally:
        receiver.server.shutdown()
        mail.server.shutdown()
        if not keep:
            clean()
