"""The watched switch, between servers that behave as a test tells them to.

A listener that speaks TLS stands where nginx does and opens a connection for each request through
the link; the end-to-end tests switch between real containers behind the real nginx.
"""

from __future__ import annotations

import contextlib
import json
import re
import socketserver
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from plugins.module_utils.traffic import SocketConnection, ask

from .conftest import run_module
from .test_releases import Host, amend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


@dataclass
class Slot:
    """A version that answers as its fields say."""

    path: Path
    health: int = 200
    errors: int = 0
    """5xx it counts with every request to /health."""
    slow: int = 0
    """Requests of half a second it counts with every request to /health."""
    wait: float = 0
    """Seconds that what comes on its own socket alone has to wait for its turn."""
    asked: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"good": 1000, "bad": 0, "slow": 0})

    def metrics(self) -> str:
        good, bad, slow = self.counts["good"], self.counts["bad"], self.counts["slow"]
        name = "http_request_duration_seconds_bucket"
        return (
            f'http_requests_total{{path="/",status="200"}} {good + slow}\n'
            f'http_requests_total{{path="/",status="500"}} {bad}\n'
            f'{name}{{path="/",le="0.01"}} {good + bad}\n'
            f'{name}{{path="/",le="0.1"}} {good + bad}\n'
            f'{name}{{path="/",le="+Inf"}} {good + bad + slow}\n'
        )

    def answer(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        if path == "/health/live":
            time.sleep(self.wait)
        if path == "/metrics":
            return 200, self.metrics().encode()
        if path == "/health":
            self.counts["good"] += 20
            self.counts["bad"] += self.errors
            self.counts["slow"] += self.slow
        return self.health, self.path.parent.name.encode()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        slot = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = slot.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "socket"

            def log_message(self, *_: object) -> None:
                pass

        with serving(_UnixServer(str(self.path), Handler)):
            yield


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class World:
    """Two slots and the public address in front of them."""

    path: Path
    port: int
    blue: Slot
    green: Slot
    log: Path
    """Access log of what stands at the public address."""

    def active(self) -> str:
        return str((self.path / "active").readlink())

    def switch(self, target: str = "green", *options: str, **params: Any) -> dict[str, Any]:
        """What the module answers when it is run by Ansible on this machine."""
        public = {"host": "127.0.0.1", "port": self.port, "name": "localhost"}
        arguments = {
            "path": str(self.path),
            "target": target,
            "public": public,
            "watch_seconds": 2,
            "gateway_log": ["tail", "--lines=+1", "--follow", str(self.log)],
            **params,
        }
        return run_module("switch_slot", arguments, *options)


def logged(log: Path, status: int) -> None:
    """One line, as nginx would write it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with log.open("a") as file:
        file.write(json.dumps({"time": now, "upstream_status": f"503, {status}"}) + "\n")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    path = tmp_path / "sockets"
    for name in ("blue", "green"):
        (path / name).mkdir(parents=True)
    (path / "active").symlink_to("blue")

    log = tmp_path / "access.log"
    log.touch()

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            connection = SocketConnection(path / "active" / "api-1.sock", 10)
            try:
                status, body = ask(connection, self.path, "localhost")
            except OSError:
                status, body = 502, b""
            finally:
                connection.close()
            logged(log, status)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    front.socket = context.wrap_socket(
        front.socket, server_side=True, do_handshake_on_connect=False
    )
    blue, green = (Slot(path / name / "api-1.sock") for name in ("blue", "green"))
    with blue.running(), green.running(), serving(front):
        yield World(path, front.server_port, blue, green, log)


def test_switch_loses_nothing_and_gives_a_receipt(world: World) -> None:
    """BM-10: the good case, with what was sent before and after."""
    answer = world.switch()
    assert answer["changed"] is True
    assert (answer["previous"], answer["active"], world.active()) == ("blue", "green", "green")
    receipt = answer["receipt"]
    assert receipt["before"]["sent"] >= 15
    assert receipt["after"]["sent"] >= 30
    assert receipt["before"]["failed"] == receipt["after"]["failed"] == receipt["errors"] == 0
    assert receipt["answered"] >= 20 * 30
    assert receipt["switch_ms"] < 100
    assert world.green.asked[0] == "/health"


def test_slot_that_serves_already(world: World) -> None:
    """BM-10: nothing to do, and nothing is asked."""
    answer = world.switch("blue")
    assert answer["changed"] is False
    assert world.blue.asked == []


def test_check_mode(world: World) -> None:
    """BM-10: says so, and neither switches nor asks."""
    assert world.switch("green", "--check")["changed"] is True
    assert world.active() == "blue"
    assert world.green.asked == []


def test_first_slot_is_not_watched(world: World) -> None:
    """BM-10: nothing served before, so there is no public address to probe."""
    (world.path / "active").unlink()
    answer = world.switch("blue", public={"host": "127.0.0.1", "port": 9, "name": "localhost"})
    assert (answer["previous"], answer["active"], world.active()) == (None, "blue", "blue")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"health": 503}, "Slot green answers 503 to /health"),
        ({"path": None}, "Slot green listens on no socket"),
    ],
)
def test_slot_that_does_not_answer(world: World, change: dict[str, Any], reason: str) -> None:
    """BM-10: found before anything is switched; no client meets it."""
    if "path" in change:
        world.green.path.unlink()
    else:
        world.green.health = change["health"]
    answer = world.switch()
    assert reason in answer["msg"]
    assert world.active() == "blue"
    assert "receipt" not in answer


def hangs(slot: Slot) -> None:
    """Answers when asked beforehand, and leaves clients waiting."""
    good = slot.answer

    def answer(path: str) -> tuple[int, bytes]:
        if path == "/health" and slot.asked.count("/health") > 3:
            slot.asked.append(path)
            time.sleep(7)
            return 200, b""
        return good(path)

    slot.answer = answer  # type: ignore[method-assign]


def has_no_metrics(slot: Slot) -> None:
    good = slot.answer
    slot.answer = lambda path: (404, b"") if path == "/metrics" else good(path)  # type: ignore[method-assign]


def fails_later(slot: Slot) -> None:
    """Healthy when asked beforehand, and not when clients come."""
    good = slot.answer

    def answer(path: str) -> tuple[int, bytes]:
        if path == "/health" and len(slot.asked) > 5:
            slot.asked.append(path)
            return 500, b""
        return good(path)

    slot.answer = answer  # type: ignore[method-assign]


def counts_errors(slot: Slot) -> None:
    slot.errors = 2


def counts_slowness(slot: Slot) -> None:
    slot.slow = 20


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (fails_later, "a probe of the public address failed: HTTP 500"),
        (hangs, "a probe of the public address failed: TimeoutError"),
        (has_no_metrics, "its metrics cannot be read: HTTP 404"),
        (counts_errors, "requests ended with a 5xx"),
        (counts_slowness, "requests took longer than 0.1 s"),
    ],
)
def test_worse_version_goes_back_by_itself(
    world: World, fault: Callable[[Slot], None], reason: str
) -> None:
    """BM-10: with the reason, and the slot before serves again before the watch is over."""
    fault(world.green)
    answer = world.switch(watch_seconds=3 if fault is hangs else 20)
    assert "Slot green serves worse than blue did: " in answer["msg"]
    assert reason in answer["msg"]
    assert (answer["active"], world.active()) == ("blue", "blue")
    assert answer["receipt"]["returned_after_seconds"] < 10
    assert answer["receipt"]["back"]["failed"] == 0
    # What waited for it was let through to it: the stop that follows would reset it.
    assert world.green.asked[-1] == "/health/live"


def dies(slot: Slot, log: Path) -> None:
    """With every fourth request that the proxy brings it, and counts none of those."""
    good = slot.answer

    def answer(path: str) -> tuple[int, bytes]:
        if path == "/health" and slot.asked.count(path) % 4 == 3:
            logged(log, 502)
        return good(path)

    slot.answer = answer  # type: ignore[method-assign]


def test_version_whose_processes_die(world: World) -> None:
    """BM-10: what no process counts is counted by the proxy."""
    dies(world.green, world.log)
    answer = world.switch(watch_seconds=20)
    assert re.search(r"\d+ of \d+ requests ended with a 5xx .*; so the proxy says", answer["msg"])
    assert (answer["active"], world.active()) == ("blue", "blue")


def test_version_that_dies_no_more_often(world: World) -> None:
    """BM-10: what the version before did as well is no reason to go back to it."""
    for slot in (world.blue, world.green):
        dies(slot, world.log)
    assert world.switch(watch_seconds=4, before_seconds=4)["changed"] is True
    assert world.active() == "green"


def test_without_a_log_of_the_proxy(world: World) -> None:
    """BM-10: the rest is compared all the same."""
    assert world.switch(gateway_log=["no-such-command"])["changed"] is True


def test_successor_of_a_version_that_does_not_serve(world: World) -> None:
    """BM-10: what is broken must not stand in the way of what mends it."""
    world.blue.health = 503
    answer = world.switch()
    assert (answer["changed"], world.active()) == (True, "green")
    assert set(answer["receipt"]["before"]["failures"]) == {"HTTP 503"}
    assert "after" not in answer["receipt"]


def test_version_that_fails_slowly_does_not_serve_either(world: World) -> None:
    """BM-10: what most of the answers say counts, not how many probes still wait for theirs."""

    def slowly(path: str) -> tuple[int, bytes]:
        world.blue.asked.append(path)
        if path == "/health":
            time.sleep(0.6)
        return 503, b""

    world.blue.answer = slowly  # type: ignore[method-assign]
    answer = world.switch()
    assert (answer["changed"], world.active()) == (True, "green")
    assert "after" not in answer["receipt"]


def test_one_failed_probe_beforehand_does_not_end_the_watch(world: World) -> None:
    """BM-10: a blip of a dependency is no reason to switch unseen."""
    good = world.blue.answer

    def once(path: str) -> tuple[int, bytes]:
        if world.blue.asked.count("/health") == 3:
            world.blue.asked.append(path)
            return 503, b""
        return good(path)

    world.blue.answer = once  # type: ignore[method-assign]
    world.green.errors = 2
    answer = world.switch(watch_seconds=20)
    assert answer["receipt"]["before"]["failed"] == 1
    assert "requests ended with a 5xx" in answer["msg"]
    assert world.active() == "blue"


@pytest.mark.parametrize("health", [200, 503], ids=["serving", "not serving"])
def test_waits_for_what_the_slot_before_has_not_begun(world: World, health: int) -> None:
    """BM-10: the stop that follows would reset connections that wait in its queue."""
    world.blue.health = health
    world.blue.wait = 5
    began = time.monotonic()
    assert world.switch(watch_seconds=0.1)["changed"] is True
    assert time.monotonic() - began > 5
    assert world.blue.asked[-1] == "/health/live"


@pytest.fixture
def back(world: World, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """Stage the release before the last, whose version stands by in the slot green."""
    host = Host(tmp_path)
    (tmp_path / "secrets").mkdir()
    address = {
        "nginx_publish_address": "0.0.0.0",
        "nginx_https_port": world.port,
        "stack_server_names": ["localhost"],
    }
    for number, version in enumerate(("zero", "one", "two"), 1):
        host.deploy(version)
        amend(host, number, images={}, secrets={}, loads={}, address=address)
    arguments = {
        "path": str(host.kept),
        "services": str(host.services),
        "stage": str(tmp_path / "stage"),
        "sockets": str(world.path),
        "slots": ["blue", "green"],
        "secrets": str(tmp_path / "secrets"),
        "loaded": str(tmp_path / "loaded.json"),
        "switch": {"gateway_log": ["tail", "--lines=+1", "--follow", str(world.log)]},
    }
    return lambda: run_module("release_stage", arguments)


def test_what_stands_by_serves_at_once(
    world: World, back: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    """BM-10: in the execution that finds the release, with a receipt."""
    answer = back()
    assert answer["changed"] is True
    assert (answer["serving"], answer["target"], answer["stands_by"]) == ("blue", "green", True)
    assert world.active() == answer["switched"]["active"] == "green"
    assert answer["switched"]["receipt"]["after"]["failed"] == 0
    assert (tmp_path / "stage" / "api" / "current" / "green.yml").exists()


def test_what_stands_by_and_does_not_answer(
    world: World, back: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    """BM-10: then what served does so still, and the release is staged to be started anew."""
    world.green.health = 503
    answer = back()
    assert (answer["changed"], world.active()) == (False, "blue")
    assert "Slot green answers 503" in answer["switched"]["msg"]
    assert (tmp_path / "stage" / "api" / "current" / "green.yml").exists()
