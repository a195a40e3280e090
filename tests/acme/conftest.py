"""nginx and the keeper of its certificate alone, and a real ACME server with a DNS zone."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from tests.harness import ROOT, Engine, Run, Site, Stack, playbook
from tests.roles.tls.authority import issue

if TYPE_CHECKING:
    from collections.abc import Iterator

INVENTORY = "inventories/test"
PROJECT = "compose-stack-acme"
DIRECTORY = Path("/opt/compose-stack-acme")
HTTP, HTTPS = 17480, 17481
NAME = "www.acme.test"
NAMES = [NAME, "acme.test"]
SHORT, LONG = "https://pebble:14000/dir", "https://pebble:14001/dir"
"""Where certificates last for a minute, and for ninety days."""
LIFE = 60
KEEPER = ("python3", "/etc/compose-stack/current/bin/keeper.py")
AUTHORITY = f"{PROJECT}-authority"
IMAGE = f"{PROJECT}/authority:1"
SECRET = base64.b64encode(uuid.uuid4().bytes * 2).decode()
ENGINE = Engine()


@dataclass
class World:
    """The stack, and the authority that it asks."""

    stack: Stack
    scratch: Path
    settings: dict[str, Any]
    project: str = PROJECT

    def run(self, name: str, *options: str, **variables: Any) -> Run:
        merged = {**self.settings, **variables}
        return playbook(INVENTORY, *options, name=name, variables=merged, seconds=600)

    def keeper(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.stack.execute("acme", *KEEPER, *words, check=False).splitlines()[-1]
        )
        return found

    def metrics(self) -> dict[str, float]:
        fetch = (
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9121/metrics')"
            ".read().decode())"
        )
        lines = self.stack.execute("acme", "python3", "-c", fetch).splitlines()
        return {
            name: float(value)
            for name, _, value in (line.partition(" ") for line in lines)
            if value and not name.startswith("#")
        }

    def reach_the_authority(self) -> None:
        """It is known as `pebble`, and its zone leads to nginx."""
        ENGINE.run(
            *("docker", "network", "connect", "--alias=pebble", "--alias=ns.acme.test"),
            *(f"{self.project}_frontend", AUTHORITY),
        )
        self.point()

    def point(self) -> None:
        """Have the names lead to nginx, where it is now."""
        networks = self.stack.one("nginx")["NetworkSettings"]["Networks"]
        own = ENGINE.run("docker", "inspect", AUTHORITY)
        addresses = {
            "acme.test": networks[f"{self.project}_frontend"]["IPAddress"],
            NAME: networks[f"{self.project}_frontend"]["IPAddress"],
            "ns.acme.test": json.loads(own)[0]["NetworkSettings"]["Networks"][
                f"{self.project}_frontend"
            ]["IPAddress"],
        }
        lines = ["server 127.0.0.1", f"key hmac-sha256:lego-acme-test {SECRET}", "zone acme.test"]
        for name, address in addresses.items():
            lines += [f"del {name}. A", f"add {name}. 1 A {address}"]
        script = "\n".join([*lines, "send", ""])
        ENGINE.run("docker", "exec", AUTHORITY, "sh", "-c", f"echo '{script}' | knsupdate")

    def lose_the_authority(self) -> None:
        ENGINE.run("docker", "network", "disconnect", f"{self.project}_frontend", AUTHORITY)

    @contextlib.contextmanager
    def without_the_authority(self) -> Iterator[None]:
        self.lose_the_authority()
        try:
            yield
        finally:
            self.reach_the_authority()

    def records(self, kind: str, name: str) -> list[str]:
        """What the zone holds under a name."""
        found = ENGINE.run("docker", "exec", AUTHORITY, "kdig", "@127.0.0.1", name, kind, "+short")
        return found.split()

    def roots(self) -> str:
        """Whom clients trust: the authorities of both servers."""
        found = ""
        for port in (15000, 15001):
            context = ssl.create_default_context(cafile=str(self.scratch / "ca.pem"))
            address = ENGINE.run("docker", "port", AUTHORITY, f"{port}/tcp").split()[0]
            host, _, published = address.rpartition(":")
            with contextlib.closing(
                http.client.HTTPSConnection(host, int(published), context=context, timeout=10)
            ) as connection:
                connection.request("GET", "/roots/0")
                found += connection.getresponse().read().decode()
        return found

    def client(self) -> ssl.SSLContext:
        """Trusts the two authorities, and nobody else."""
        return ssl.create_default_context(cadata=self.roots())

    def served(self) -> x509.Certificate:
        """What a client gets that believes everything."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", HTTPS), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=NAME) as wrapped,
        ):
            encoded = wrapped.getpeercert(binary_form=True)
        assert encoded
        return x509.load_der_x509_certificate(encoded)

    def key(self) -> str:
        """The key that is served, by its digest."""
        return hashlib.sha256((DIRECTORY / "tls/live/privkey.pem").read_bytes()).hexdigest()

    def nginx(self) -> tuple[str, str, list[str]]:
        """nginx' container and its processes: a reload has new ones."""
        item = self.stack.one("nginx")
        listed = ENGINE.run("docker", "top", item["Id"], "-o", "pid").split()[1:]
        return item["Id"], item["State"]["StartedAt"], listed


class ByName(http.client.HTTPSConnection):
    """Connects to this machine, and asks for a name."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(NAME, HTTPS, context=context, timeout=10)
        self.trusting = context

    def connect(self) -> None:
        raw = socket.create_connection(("127.0.0.1", HTTPS), timeout=10)
        self.sock = self.trusting.wrap_socket(raw, server_hostname=NAME)


@dataclass
class Load:
    """Requests over new connections and over kept ones, each of which has to be answered."""

    context: ssl.SSLContext
    new: int = 0
    kept: int = 0
    failed: list[str] = field(default_factory=list)
    serials: set[int] = field(default_factory=set)
    reopened: int = 0

    def _ask(self, connection: ByName) -> None:
        connection.request("GET", "/static/robots.txt")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            self.failed.append(f"status {answer.status}")

    def _new(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with contextlib.closing(ByName(self.context)) as connection:
                    self._ask(connection)
                    self.new += 1
                    assert isinstance(connection.sock, ssl.SSLSocket)
                    encoded = connection.sock.getpeercert(binary_form=True)
                    assert encoded
                    self.serials.add(x509.load_der_x509_certificate(encoded).serial_number)
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"new: {error!r}")
            time.sleep(0.02)

    def _kept(self, stop: threading.Event) -> None:
        connection = ByName(self.context)
        sockets = set()
        while not stop.is_set():
            try:
                self._ask(connection)
                sockets.add(id(connection.sock))
                self.kept += 1
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"kept: {error!r}")
                connection.close()
            # Fewer than nginx answers over one connection (1000): closed by nobody.
            time.sleep(0.1)
        self.reopened += len(sockets) - 1
        connection.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        kinds = [self._new] * 2 + [self._kept] * 4
        threads = [threading.Thread(target=kind, args=(stop,)) for kind in kinds]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def settings(scratch: Path) -> dict[str, Any]:
    return {
        "stack_project": PROJECT,
        "stack_dir": str(DIRECTORY),
        "stack_services": ["acme", "nginx"],
        "stack_server_names": NAMES,
        "nginx_http_port": HTTP,
        "nginx_https_port": HTTPS,
        # The inventory's are another stack's, and `clean` removes what they name.
        **dict.fromkeys(("postgres_data_dir", "redis_data_dir", "rabbitmq_data_dir"), ""),
        "tls_mode": "acme",
        "acme_email": "operator@acme.test",
        "acme_directory": SHORT,
        "acme_ca_file": str(scratch / "ca.pem"),
    }


def start_the_authority(scratch: Path) -> None:
    """A container of its own, which nobody reaches at first."""
    known = ENGINE.run(
        *("docker", "image", "ls", "--filter=reference=compose-stack/base"),
        "--format={{.Repository}}:{{.Tag}}",
    )
    ENGINE.run(
        *("docker", "buildx", "build", "--quiet", f"--build-arg=BASE_IMAGE={known.split()[0]}"),
        *(f"--tag={IMAGE}", str(ROOT / "tests" / "acme" / "authority")),
        seconds=300,
    )
    ENGINE.run("docker", "network", "create", AUTHORITY)
    ENGINE.run(
        *("docker", "run", "--detach", "--rm", f"--name={AUTHORITY}", f"--network={AUTHORITY}"),
        *("--publish=127.0.0.1::15000", "--publish=127.0.0.1::15001"),
        *(f"--volume={scratch / 'certificate'}:/certificate:ro", f"--env=TSIG_SECRET={SECRET}"),
        f"--env=LIFE={LIFE}",
        IMAGE,
    )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    scratch = tmp_path_factory.mktemp("acme")
    site = Site("127.0.0.1", HTTPS, HTTP, NAME, DIRECTORY / "tls/live/ca.pem")
    world = World(Stack(Engine(), PROJECT, str(DIRECTORY), site), scratch, settings(scratch))
    ca = issue("pebble's authority", authority=True)
    (scratch / "ca.pem").write_text(ca.pem)
    issue("pebble", "127.0.0.1", by=ca).save(scratch / "certificate")
    world.run("build.yml").succeeded()
    clean(world)
    try:
        start_the_authority(scratch)
        yield world
    finally:
        clean(world)


def clean(world: World) -> None:
    ENGINE.run("docker", "rm", "--force", "--volumes", AUTHORITY, check=False)
    ENGINE.run("docker", "network", "rm", AUTHORITY, check=False)
    ENGINE.run("docker", "image", "rm", "--force", IMAGE, check=False)
    world.run("clean.yml", clean_confirm=PROJECT).succeeded()


def said(run: Run) -> str:
    """What a run printed, as one line: Ansible wraps it."""
    return re.sub(r"\s+", " ", run.output)


def modes(directory: Path) -> dict[str, tuple[int, int]]:
    """Owner and mode of each file below, links apart."""
    found = {}
    for path in directory.rglob("*"):
        status = os.lstat(path)
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(directory))] = (status.st_uid, status.st_mode & 0o777)
    return found
