"""The operator's status page, against a real Prometheus: CS-3, CS-6, CS-9, CS-10, FS-8.

Only the tests that take `backends` need the database and Redis; for the others both are absent.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from compose_app.app import build_app
from compose_app.config import Settings
from compose_app.status import charts, text
from compose_app.status.prometheus import POINTS
from conftest import Backends, free_port, image, wait_for

PASSWORD = "pässword: of the operator"
EVIL = "<script>alert(1)</script>"
HOUR = 3600

Handle = Callable[[socket.socket], None]


def basic(user: str = "operator", password: str = PASSWORD) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()}


@contextmanager
def listener(handle: Handle) -> Iterator[int]:
    """A TCP server that does with each connection as it is told; yields its port."""
    server = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError):
            handle(connection)

    def accept() -> None:
        while not stop.is_set():
            with suppress(OSError):
                connection, _ = server.accept()
                connections.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for each in (server, *connections):
            each.close()


def never(_: socket.socket) -> None:
    """Accept, and say nothing."""


def read_request(connection: socket.socket) -> None:
    """All of it: to hang up on the rest would reset the connection, answer included."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length
    while len(body) < int(length[1]):
        body += connection.recv(65536)


def saying(answer: bytes) -> Handle:
    def handle(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)
        connection.close()

    return handle


def http_answer(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def dripping(connection: socket.socket) -> None:
    """Answer without end, a byte at a time: no single wait is long."""
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.2)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment without database, Redis and Prometheus: nobody listens."""
    for name, secret in (("operator", PASSWORD), ("other", "other")):
        (tmp_path / name).write_text(secret + "\n")
    return {
        "API_SLOT": "green",
        "DATABASE_URL": f"postgresql://app@127.0.0.1:{free_port()}/app",
        "DATABASE_PASSWORD_FILE": str(tmp_path / "other"),
        "REDIS_CACHE_URL": f"redis://app@127.0.0.1:{free_port()}/0",
        "REDIS_CACHE_PASSWORD_FILE": str(tmp_path / "other"),
        "OPERATOR_PASSWORD_FILE": str(tmp_path / "operator"),
    }


Start = Callable[..., FlaskClient]


@pytest.fixture
def start(environ: dict[str, str]) -> Start:
    """Builds the application with the given settings."""

    def build(**overrides: str) -> FlaskClient:
        return build_app(Settings.from_environ({**environ, **overrides})).test_client()

    return build


@contextmanager
def running_prometheus(directory: Path, targets: str = "[]") -> Iterator[str]:
    """A real Prometheus: the one on PATH, else from its image. Yields its URL."""
    directory.chmod(0o755)
    config = directory / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 3s, scrape_timeout: 3s}\n"
        "scrape_configs:\n"
        f"  - {{job_name: feed, honor_labels: true, static_configs: [{{targets: {targets}}}]}}\n"
    )
    port = free_port()
    name = f"compose-app-test-prometheus-{uuid.uuid4().hex[:8]}"
    options = [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    binary = shutil.which("prometheus")
    if binary:
        command = [
            *(binary, f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"),
            *options,
        ]
    else:
        # On the host's network, for it has to reach the test's own server on loopback.
        command = [
            *("docker", "run", "--rm", "--name", name, "--network", "host", "--memory", "512m"),
            *("--user", "65534:65534", "--tmpfs", "/tmp:mode=1777"),
            *("--volume", f"{directory}:/conf:ro", "--entrypoint", "prometheus"),
            *(image("prometheus"), "--config.file=/conf/prometheus.yml"),
            *("--storage.tsdb.path=/tmp/data", *options),
        ]
    log = directory.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(
            "Prometheus to be ready",
            lambda: bool(urllib.request.urlopen(f"{url}/-/ready", timeout=1).status == 200),
        )
        yield url
    finally:
        if not binary:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
        process.terminate()
        process.wait(30)


class Exposition:
    """Samples with times of their own, as a scrape reads them."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.times = range(now - HOUR - 600, now + 1, 15)
        self._series: dict[str, list[str]] = {}

    def _add(self, name: str, labels: dict[str, str], value: float, moment: int) -> None:
        written = ",".join(f'{key}="{text}"' for key, text in labels.items())
        line = f"{name}{{{written}}} {value} {moment * 1000}"
        self._series.setdefault(name, []).append(line)

    def counter(self, metric: str, per_second: float, /, **labels: str) -> None:
        for moment in self.times:
            self._add(metric, labels, (moment - self.times[0]) * per_second, moment)

    def gauge(
        self, metric: str, value: float, history: float | None = None, /, **labels: str
    ) -> None:
        """`value` now and, if given, `history` up to then."""
        if history is not None:
            for moment in self.times[:-1]:
                self._add(metric, labels, history, moment)
        self._add(metric, labels, value, self.now)

    def text(self) -> str:
        return "".join(f"{line}\n" for lines in self._series.values() for line in lines)


MIB, GIB = 1024**2, 1024**3


def stack(now: int) -> Exposition:
    """A stack with something of everything."""
    feed = Exposition(now)
    api = {"job": "api", "instance": "10.0.0.2:9100", "method": "GET"}
    # 2.4 + 0.1 requests per second; the probes' 10 and another job's 50 do not count.
    feed.counter("http_requests_total", 2.4, **api, path="/api/items", status="200")
    feed.counter("http_requests_total", 0.1, **api, path="/api/items", status="500")
    feed.counter("http_requests_total", 10, **api, path="/health", status="200")
    feed.counter("http_requests_total", 10, **api, path="/metrics", status="500")
    feed.counter("http_requests_total", 50, job="other", path="/x", status="500")
    for le, share in (("0.01", 0.5), ("0.1", 0.9), ("0.25", 0.95), ("0.5", 0.99), ("+Inf", 1)):
        for path, factor in (("/api/items", 2.5), ("/health", 0.0)):
            feed.counter(
                "http_request_duration_seconds_bucket",
                factor * share,
                **api,
                path=path,
                status="200",
                le=le,
            )
    host = {"job": "node", "instance": "host"}
    for name, service, runs, healthy, code in (
        ("stack-postgres-1", "postgres", 1, 1, 0),
        ("stack-api-green-1", "api-green", 1, 0, 0),
        ("stack-nginx-1", "nginx", 1, None, 0),
        ("stack-migrate-green-1", "migrate-green", 0, None, 0),
        ("stack-backup-1", "backup", 0, None, 3),
    ):
        labels = {**host, "name": name, "service": service}
        feed.gauge("container_running", runs, **labels)
        if healthy is not None:
            feed.gauge("container_health", healthy, **labels)
        if not runs:
            feed.gauge("container_exit_code", code, **labels)
        feed.gauge("container_start_time_seconds", now - 7300, **labels)
        feed.gauge("container_restarts_total", 2 if service == "nginx" else 0, **labels)
        feed.gauge("container_memory_working_set_bytes", 64 * MIB, **labels)
        limit = 0 if service == "nginx" else 256 * MIB
        feed.gauge("container_spec_memory_limit_bytes", limit, **labels)
    feed.gauge("container_metrics_collected_timestamp_seconds", now, **host)
    for device, mountpoint, kind, free, size in (
        ("/dev/sda1", "/", "ext4", 25, 100),
        ("/dev/sda1", "/var/lib/compose-stack", "ext4", 25, 100),
        ("/dev/sdb1", "/srv", "xfs", 60, 80),
        ("tmpfs", "/run", "tmpfs", 0, 1),
    ):
        labels = {**host, "device": device, "mountpoint": mountpoint, "fstype": kind}
        feed.gauge("node_filesystem_avail_bytes", free * GIB, free * GIB, **labels)
        feed.gauge("node_filesystem_size_bytes", size * GIB, size * GIB, **labels)
    feed.gauge("node_memory_MemAvailable_bytes", 6 * GIB, 4 * GIB, **host)
    feed.gauge("node_memory_MemTotal_bytes", 8 * GIB, 8 * GIB, **host)
    feed.gauge("backup_last_success_timestamp_seconds", now - 3 * HOUR, **host, database="redis")
    feed.gauge("backup_last_success_timestamp_seconds", now - 7 * HOUR, **host, database="postgres")
    feed.gauge(
        "probe_ssl_earliest_cert_expiry", now + 41.5 * 86400, job="blackbox", instance="localhost"
    )
    for slot in ("blue", "green"):
        tag = f"compose-stack/api:{slot}"
        feed.gauge("compose_stack_release_info", 1, **host, slot=slot, image=tag)
    feed.gauge("up", 1, **host)
    feed.gauge("up", 0, job="redis", instance="redis-queue")
    for alert, severity, state in (
        (EVIL, "warning", "firing"),
        ("RedisDown", "critical", "firing"),
        ("DiskFills", "warning", "pending"),
        ("Watchdog", "none", "firing"),
    ):
        labels = {"alertname": alert, "severity": severity, "job": "redis", "instance": "r"}
        feed.gauge("ALERTS", 1, **labels, alertstate=state)
        feed.gauge("ALERTS_FOR_STATE", now - 600, **labels)
    return feed


def calm(now: int, per_second: float) -> Exposition:
    """A stack that nothing ails: no failure, no backup, no alert but the watchdog."""
    feed = Exposition(now)
    api = {"job": "api", "instance": "10.0.0.2:9100", "path": "/api/items", "status": "200"}
    feed.counter("http_requests_total", per_second, **api)
    for le in ("0.01", "0.1", "+Inf"):
        feed.counter("http_request_duration_seconds_bucket", per_second, **api, le=le)
    host = {"job": "node", "instance": "host"}
    feed.gauge("node_memory_MemAvailable_bytes", 2 * GIB, **host)
    feed.gauge("node_memory_MemTotal_bytes", 8 * GIB, **host)
    feed.gauge("container_metrics_collected_timestamp_seconds", now - 300, **host)
    feed.gauge("probe_ssl_earliest_cert_expiry", now - 86400, job="blackbox", instance="localhost")
    feed.gauge("ALERTS", 1, alertname="Watchdog", alertstate="firing")
    feed.gauge("up", 1, job="redis", instance="redis-queue")
    return feed


@dataclasses.dataclass
class Fed:
    """A Prometheus that knows a stack, and the time that is the stack's now."""

    url: str
    now: int


@contextmanager
def feeding(directory: Path, feed: Exposition) -> Iterator[Fed]:
    """A Prometheus that has scraped what a stack exposes."""
    body = feed.text().encode()
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Once is enough: what has a time of its own stays.
            answer = b"" if done.is_set() else body
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with suppress(OSError):  # Prometheus is stopped while it reads
                self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with ExitStack() as stack_:
        server = stack_.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack_.callback(server.shutdown)
        targets = f"['127.0.0.1:{server.server_port}']"
        url = stack_.enter_context(running_prometheus(directory, targets))

        def scraped() -> bool:
            # As the page asks, with whole seconds: what has come just now is not there yet.
            query = f"{url}/api/v1/query?query=up&time={int(time.time())}"
            with urllib.request.urlopen(query, timeout=2) as answer:
                found = answer.read()
            return b'"feed"' in found and b'"redis-queue"' in found

        wait_for("the first scrape", scraped)
        done.set()
        yield Fed(url, feed.now)


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    with feeding(tmp_path_factory.mktemp("fed"), stack(int(time.time()))) as fed:
        yield fed


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that scrapes nothing."""
    with running_prometheus(tmp_path_factory.mktemp("empty")) as url:
        yield url


class Page(HTMLParser):
    """What a browser would care for."""

    def __init__(self, answer: TestResponse) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.named: set[str] = set()
        self.inline: list[str] = []
        self.assets: list[str] = []
        self.refresh: str | None = None
        self.words: list[str] = []
        self.html = answer.get_data(as_text=True)
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: str(value) for name, value in attrs}
        if "id" in values:
            self.ids.append(values["id"])
        self.named |= set(values.get("aria-labelledby", "").split())
        self.inline += [f"{tag} {name}" for name in values if name == "style" or name[:2] == "on"]
        if tag in ("style", "script"):
            self.inline.append(tag)
        if "src" in values or tag == "link":
            self.assets.append(values.get("src") or values["href"])
        if tag == "meta" and values.get("http-equiv") == "refresh":
            self.refresh = values["content"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page(client: FlaskClient, path: str = "/status") -> Page:
    answer = client.get(path, headers=basic())
    assert answer.status_code == 200
    assert answer.content_type == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    return Page(answer)


def document(client: FlaskClient) -> Any:
    answer = client.get("/status.json", headers=basic())
    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.get_json()


def test_values(start: Start, fed: Fed) -> None:
    """CS-3, CS-6: what Prometheus knows, in JSON."""
    status = document(start(PROMETHEUS_URL=fed.url))
    assert status["metrics"] == {"available": True, "reason": None}
    assert status["traffic"]["requests_per_second"] == pytest.approx(2.5, rel=0.1)
    assert status["traffic"]["error_ratio"] == pytest.approx(0.04, rel=0.01)
    latency = status["traffic"]["latency_seconds"]
    assert latency["p50"] == pytest.approx(0.01, rel=0.01)
    assert latency["p95"] == pytest.approx(0.25, rel=0.01)
    assert latency["p99"] == pytest.approx(0.5, rel=0.01)
    assert status["release"] == {"slot": "green", "image": "compose-stack/api:green"}
    assert status["memory"] == {
        "available_bytes": 6 * GIB,
        "total_bytes": 8 * GIB,
        "used_ratio": 0.25,
    }
    assert [(disk["mountpoint"], disk["used_ratio"]) for disk in status["filesystems"]] == [
        ("/", 0.75),
        ("/srv", 0.25),
    ]
    assert [backup["labels"] for backup in status["backups"]] == [
        {"database": "postgres"},
        {"database": "redis"},
    ]
    assert status["backups"][0]["age_seconds"] == pytest.approx(7 * HOUR, abs=100)
    [certificate] = status["certificates"]
    assert certificate["name"] == "localhost"
    assert certificate["days_left"] == pytest.approx(41.5, abs=0.01)
    assert [(alert["name"], alert["severity"]) for alert in status["alerts"]] == [
        ("RedisDown", "critical"),
        (EVIL, "warning"),
    ]
    assert status["alerts"][0]["labels"] == {"instance": "r", "job": "redis"}
    assert status["alerts"][0]["since"] is not None
    assert status["watchdog"] is True
    assert status["targets"]["down"] == ["redis redis-queue"]
    assert status["database"] == status["redis"] == "unavailable"


def test_services(start: Start, fed: Fed) -> None:
    """CS-6: each container with its state, what is wrong first."""
    services = document(start(PROMETHEUS_URL=fed.url))["services"]
    assert [(each["service"], each["state"], each["exit_code"]) for each in services] == [
        ("backup", "failed", 3),
        ("api-green", "unhealthy", None),
        ("nginx", "running", None),
        ("postgres", "healthy", None),
        ("migrate-green", "stopped", 0),
    ]
    nginx, postgres = services[2:4]
    assert postgres["memory_bytes"] == 64 * MIB
    assert postgres["memory_limit_bytes"] == 256 * MIB
    assert nginx["memory_limit_bytes"] is None
    assert nginx["restarts"] == 2
    assert services[0]["started_at"] is None


def test_history(start: Start, fed: Fed) -> None:
    """CS-3: an hour of it, a value for every other minute."""
    history = document(start(PROMETHEUS_URL=fed.url))["history"]
    assert history["step_seconds"] == 120
    assert {len(points) for points in history["series"].values()} == {POINTS}
    assert history["series"]["requests_per_second"][:-1] == pytest.approx(
        [2.5] * (POINTS - 1), rel=0.1
    )
    assert history["series"]["memory_used_ratio"][:-1] == [0.5] * (POINTS - 1)
    assert set(history["series"]["fullest_disk_used_ratio"]) == {0.75}


def test_verdict_and_reasons(start: Start, fed: Fed) -> None:
    """CS-6: what needs attention is said in words."""
    status = document(start(PROMETHEUS_URL=fed.url))
    assert status["verdict"] == "attention"
    assert status["reasons"] == [
        "The database does not answer.",
        "Redis does not answer.",
        "The alert RedisDown fires.",
        f"The alert {EVIL} fires.",
        "The container stack-backup-1 has failed (exit code 3).",
        "The container stack-api-green-1 is unhealthy.",
        "Prometheus does not reach its target redis redis-queue.",
    ]


def test_page(start: Start, fed: Fed) -> None:
    """CS-3, CS-6: the same values on the page."""
    shown = page(start(PROMETHEUS_URL=fed.url)).text
    for words in (
        "Needs attention.",
        "p50 10.0 ms",
        "p95 250 ms",
        "p99 500 ms",
        "Errors 4.00 %",
        "Memory 25.0 % used, 6.00 GiB of 8.00 GiB free",
        "Fullest disk 75.0 % used of /, 25.0 GiB free",
        "Certificate 41 days left localhost",
        "Last backup 7 h ago database postgres",
        "Database unavailable",
        "Scrape targets 2 of 3 up",
        "Serving slot green",
        "compose-stack/api:green",
        "failed (3)",
        "alerting works",
        "As of 2",
    ):
        assert words in shown


def test_page_is_inert(start: Start, fed: Fed) -> None:
    """CS-9: under default-src 'self' all of it shows, and labels of metrics are only text."""
    client = start(PROMETHEUS_URL=fed.url)
    shown = page(client)
    assert shown.inline == []
    assert "style=" not in shown.html
    assert "<script" not in shown.html
    assert EVIL in shown.text
    assert shown.assets == ["/docs/static/icon.svg", "/status/static/status.css"]
    assert client.get(shown.assets[0]).status_code == 200
    answer = client.get(shown.assets[1])
    assert (answer.status_code, answer.mimetype) == (200, "text/css")
    for word in ("prefers-color-scheme: dark", "minmax("):
        assert word in answer.get_data(as_text=True)


def test_page_refreshes_itself(start: Start) -> None:
    """CS-6: every 30 s, unless that is stopped."""
    client = start()
    assert page(client).refresh == "30"
    assert page(client, "/status?refresh=off").refresh is None


def test_charts_are_accessible(start: Start, fed: Fed) -> None:
    """CS-11: each has a title, a description with its figures, and a table."""
    shown = page(start(PROMETHEUS_URL=fed.url))
    assert len(shown.ids) == len(set(shown.ids))
    assert shown.named <= set(shown.ids)
    figures = re.findall(r"<figure>.*?</figure>", shown.html, re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        tree = ET.fromstring(figure)
        drawing = tree.find("svg")
        assert drawing is not None
        assert drawing.get("role") == "img"
        title, desc = drawing.find("title"), drawing.find("desc")
        assert title is not None
        assert desc is not None
        assert "now" in str(desc.text)
        assert drawing.findall("path")
        assert len(tree.findall("details/table/tbody/tr")) == 7
    latency = figures[2]
    assert latency.count('<path class="line-') == 3
    assert latency.count("stroke-dasharray") == 4  # two lines and their keys


def test_no_data(start: Start, empty: str) -> None:
    """CS-3: an empty Prometheus is nothing to stumble over."""
    client = start(PROMETHEUS_URL=empty)
    status = document(client)
    assert status["metrics"]["available"] is True
    assert "no data yet" in status["metrics"]["reason"]
    assert status["traffic"]["requests_per_second"] is None
    assert status["backups"] is status["watchdog"] is status["memory"] is None
    assert set(status["history"]["series"]["requests_per_second"]) == {None}
    shown = page(client)
    assert f"Requests {text.UNKNOWN}" in shown.text
    assert "no data" in shown.text
    assert "no backups configured" not in shown.text
    assert not re.search(r"\bNaN\b|\bnan\b|\bNone\b|\binf\b", shown.text)


def test_nothing_wrong(start: Start, tmp_path: Path) -> None:
    """CS-3, FS-7: no failure is 0 %, no backup is said, and the watchdog is no alarm."""
    with feeding(tmp_path, calm(int(time.time()), 2)) as fed:
        client = start(PROMETHEUS_URL=fed.url)
        status = document(client)
        shown = page(client).text
    assert status["traffic"]["error_ratio"] == 0
    assert status["backups"] == status["alerts"] == []
    assert status["watchdog"] is True
    assert "Errors 0 %" in shown
    assert "Last backup no backups configured" in shown
    assert "Firing alerts None." in shown
    assert "Certificate expired localhost" in shown
    # What is old is not taken for the truth.
    assert any("their collector has stopped" in reason for reason in status["reasons"])


def test_no_traffic(start: Start, tmp_path: Path) -> None:
    """CS-3: without requests a share of them, and their latency, are unknown."""
    with feeding(tmp_path, calm(int(time.time()), 0)) as fed:
        client = start(PROMETHEUS_URL=fed.url)
        traffic = document(client)["traffic"]
        shown = page(client).text
    assert traffic["requests_per_second"] == 0
    assert traffic["error_ratio"] is None
    assert set(traffic["latency_seconds"].values()) == {None}
    assert f"Errors {text.UNKNOWN}" in shown
    assert not re.search(r"\bNaN\b|\bnan\b", shown)


def test_values_that_are_no_numbers(start: Start) -> None:
    """CS-3: NaN and infinity are unknown, and times beyond the calendar are left out."""
    result = (
        b'{"metric":{"__name__":"node_memory_MemTotal_bytes"},"value":[1,"NaN"]},'
        b'{"metric":{"__name__":"container_running","name":"x"},"value":[1,"1"]},'
        b'{"metric":{"__name__":"container_start_time_seconds","name":"x"},"value":[1,"1e300"]},'
        b'{"metric":{"__name__":"probe_ssl_earliest_cert_expiry"},"value":[1,"-Inf"]},'
        b'{"metric":{"__name__":"up","job":"x"},"value":[1,"+Inf"]}'
    )
    body = b'{"status":"success","data":{"resultType":"vector","result":[' + result + b"]}}"
    with listener(saying(http_answer(body))) as port:
        status = document(start(PROMETHEUS_URL=f"http://127.0.0.1:{port}"))
    assert status["memory"] is status["targets"] is None
    assert status["certificates"] == []
    assert status["services"][0]["started_at"] is None


def test_not_configured_prometheus(start: Start) -> None:
    """CS-7: without the monitoring profile the page says so, and shows what the app knows."""
    client = start()
    status = document(client)
    assert status["metrics"]["available"] is False
    assert "make up-all" in status["metrics"]["reason"]
    assert status["release"] == {"slot": "green", "image": None}
    shown = page(client).text
    assert "Metrics are unavailable. No Prometheus is configured." in shown
    assert "Database unavailable" in shown


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        (never, "does not answer within 2 s"),
        (dripping, "does not answer within 2 s"),
        (saying(b""), "hangs up without an answer"),
        (saying(b"\x00\xff" * 100 + b"\r\n"), "that is not HTTP"),
        (saying(http_answer(b"<html>hello</html>")), "that is not a result"),
        (saying(http_answer(b'{"status":"success","data":[]}')), "that is not a result"),
        (saying(http_answer(b'{"status":"error"}', "503 Busy")), "answers with status 503"),
        (saying(http_answer(b"", "302 Found")), "answers with status 302"),
        (saying(http_answer(b" " * 3_000_000)), "more than 2097152 bytes"),
    ],
    ids=["silent", "dripping", "nothing", "garbage", "html", "shape", "503", "302", "huge"],
)
def test_bad_prometheus(start: Start, handle: Handle, words: str) -> None:
    """CS-6: whatever it does, the page comes within 3 s and says what is wrong."""
    with listener(handle) as port:
        client = start(PROMETHEUS_URL=f"http://127.0.0.1:{port}")
        before = time.monotonic()
        shown = page(client)
        assert time.monotonic() - before < 3
        assert "Metrics are unavailable." in shown.text
        assert f"127.0.0.1:{port}" in shown.text
        assert words in shown.text
        assert "make up-all" in shown.text
        assert shown.inline == []
        # Nothing is left that still waits.
        wait_for(
            "the conversation to end",
            lambda: not [each for each in threading.enumerate() if each.name == "prometheus"],
            3,
        )


def test_gone_prometheus(start: Start) -> None:
    """CS-7: nobody listens, or nobody has the name: the monitoring profile is off."""
    refused = start(PROMETHEUS_URL=f"http://127.0.0.1:{free_port()}")
    assert "refuses connections" in page(refused).text
    before = time.monotonic()
    unknown = document(start(PROMETHEUS_URL="http://prometheus.invalid:9090"))
    assert time.monotonic() - before < 3
    assert unknown["metrics"]["available"] is False


def test_history_late(start: Start) -> None:
    """CS-6: what has come in time is shown, also when the rest has not."""
    body = (
        b'{"status":"success","data":{"resultType":"vector","result":'
        b'[{"metric":{"__name__":"up","job":"node","instance":"host"},"value":[1,"1"]}]}}'
    )

    def first_only(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(http_answer(body))

    with listener(first_only) as port:
        client = start(PROMETHEUS_URL=f"http://127.0.0.1:{port}")
        status = document(client)
        assert status["targets"] == {"up": 1, "total": 1, "down": []}
        assert status["history"] is None
        assert status["metrics"]["available"] is True
        assert "does not answer" in status["metrics"]["reason"]
        assert "Scrape targets 1 of 1 up" in page(client).text


def test_everything_frozen(start: Start) -> None:
    """CS-6: database, Redis and Prometheus accept and never answer: still within 3 s."""
    with listener(never) as postgres, listener(never) as redis, listener(never) as prometheus:
        client = start(
            DATABASE_URL=f"postgresql://app@127.0.0.1:{postgres}/app",
            REDIS_CACHE_URL=f"redis://app@127.0.0.1:{redis}/0",
            PROMETHEUS_URL=f"http://127.0.0.1:{prometheus}",
        )
        before = time.monotonic()
        status = document(client)
        assert time.monotonic() - before < 3
    assert status["database"] == status["redis"] == "unavailable"
    assert status["verdict"] == "attention"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic(password="wrong"),
        basic(password=""),
        basic(password=PASSWORD + "\n"),
        basic(user="Operator"),
        basic(user=""),
        {"Authorization": "Basic"},
        {"Authorization": "Basic %%%"},
        {"Authorization": "Basic /////w=="},
        {"Authorization": "Bearer " + PASSWORD.encode().hex()},
        {"Authorization": 'Digest username="operator"'},
    ],
)
@pytest.mark.parametrize("path", ["/status", "/status.json"])
def test_signing_in(start: Start, headers: dict[str, str], path: str) -> None:
    """FS-8: for the operator alone; all others learn only how to sign in."""
    answer = start().get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].lower().startswith("basic realm=")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.content_type == "application/problem+json"
    problem = answer.get_json()
    assert problem["type"] == "/docs#problem-unauthorized"
    assert problem["status"] == 401
    assert PASSWORD not in answer.get_data(as_text=True)


def test_not_configured(start: Start) -> None:
    """FS-8: without a password there is no page, and no way to find out more."""
    client = start(OPERATOR_PASSWORD_FILE="")
    for path in ("/status", "/status.json", "/status/static/status.css"):
        answer = client.get(path, headers=basic())
        assert answer.status_code == 404
        assert answer.get_json()["type"] == "/docs#problem-not-found"


def test_methods_and_document(start: Start) -> None:
    """CS-2: read only, and no part of the API's document."""
    client = start()
    assert client.head("/status", headers=basic()).status_code == 200
    assert client.post("/status", headers=basic()).status_code == 405
    assert not [
        path for path in client.get("/openapi.json").get_json()["paths"] if "status" in path
    ]


def test_no_credentials_in_the_log(start: Start, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """FS-8: neither the right password nor a wrong one, nor their encoding."""
    client = start()
    client.get("/status", headers=basic())
    client.get("/status", headers=basic(password="a guess"))
    out, err = capfdbinary.readouterr()
    logged = (out + err).decode()
    for secret in (
        PASSWORD,
        "a guess",
        *(basic(password=p)["Authorization"][6:] for p in (PASSWORD, "a guess")),
    ):
        assert secret not in logged


def test_all_is_well(backends: Backends, environ: dict[str, str], start: Start) -> None:
    """CS-6: database and Redis by the application's own checks."""
    client = start(**backends.environ, OPERATOR_PASSWORD_FILE=environ["OPERATOR_PASSWORD_FILE"])
    status = document(client)
    assert (status["database"], status["redis"]) == ("ok", "ok")
    assert status["verdict"] == "unknown"
    assert status["reasons"] == []


@pytest.mark.parametrize(
    ("points", "drawn"),
    [
        ([], ""),
        ([None, None], ""),
        ([0.0, 1.0], "M4.0 94.0L316.0 18.0"),
        ([None, 1.0, None], "M160.0 18.0h0.1"),
        ([0.0, None, 2.0], "M4.0 94.0h0.1M316.0 18.0h0.1"),
    ],
)
def test_path(points: list[float | None], drawn: str) -> None:
    """CS-11: gaps stay gaps, a point alone is seen, and nothing leaves the picture."""
    assert charts.path(points, 1) == drawn


@pytest.mark.parametrize(
    ("value", "top"), [(0.004, 0.005), (1, 1), (1.01, 2), (3, 5), (7, 10), (120, 200)]
)
def test_scale(value: float, top: float) -> None:
    """CS-11: the upper edge is a round number."""
    assert charts.nice(value) == pytest.approx(top)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (text.number(1234.5), "1,234"),
        (text.number(99.96), "100"),
        (text.number(0.0123), "0.012"),
        (text.number(0), "0"),
        (text.rate(12.34), "12.3/s"),
        (text.ratio(0.99999), "100 %"),
        (text.seconds(0.0004), "0.4 ms"),
        (text.seconds(1.5), "1.50 s"),
        (text.size(1023), "1,023 B"),
        (text.size(1536), "1.50 KiB"),
        (text.size(3 * 1024**4), "3.00 TiB"),
        (text.span(59), "59 s"),
        (text.span(7200), "2 h"),
        (text.span(-3 * 86400), "-3 days"),
        *((each(None), text.UNKNOWN) for each in (text.number, text.rate, text.ratio, text.size)),
        *((each(None), text.UNKNOWN) for each in (text.seconds, text.span, text.moment)),
    ],
)
def test_text(shown: str, words: str) -> None:
    """CS-11: values as people read them."""
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == words


@pytest.mark.skipif("STATUS_PAGE_FILE" not in os.environ, reason="writes the page where told")
def test_write_page(start: Start, fed: Fed) -> None:
    """To look at it."""
    Path(os.environ["STATUS_PAGE_FILE"]).write_text(page(start(PROMETHEUS_URL=fed.url)).html)
