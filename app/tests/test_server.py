"""CS-2, CS-3, UT-8, UT-12: the application under gunicorn, with several workers."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compose_app import forking, sockets
from conftest import SRC, Answer, Backends, Gunicorn, StartGunicorn, wait_for

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.match(line)
            assert match, line
            name, labels, value = match.groups()
            samples[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))] = float(value)
    return samples


def requests_total(text: str, method: str, path: str, status: int) -> float:
    labels = frozenset({("method", method), ("path", path), ("status", str(status))})
    return parse(text).get(("http_requests_total", labels), 0)


def metrics(server: Gunicorn) -> str:
    return server.request("GET", "/metrics").body.decode()


def test_metrics_across_workers(gunicorn: StartGunicorn) -> None:
    """CS-3: whichever worker answers, the figures are those of all."""
    server = gunicorn(WEB_CONCURRENCY="3")
    created = server.request("POST", "/api/items", {"name": "a", "price_cents": 1}).json
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: server.request("GET", f"/api/items/{created['id']}"), range(60)))
    for number in range(8):
        server.request("GET", f"/api/items/{10_000 + number}")
        server.request("GET", f"/unknown/{number}")
    server.request("PUT", "/api/cache/k", {"value": 1, "ttl": 60})
    server.request("GET", "/api/cache/k")
    for _ in range(6):
        text = metrics(server)
        assert requests_total(text, "GET", "/api/items/{id}", 200) == 60
        assert requests_total(text, "GET", "/api/items/{id}", 404) == 8
        assert requests_total(text, "POST", "/api/items", 201) == 1
        assert requests_total(text, "GET", "<unmatched>", 404) == 8
        samples = parse(text)
        assert samples["redis_commands_total", frozenset()] == 3
        assert 1 <= samples["db_connections_active", frozenset()] <= 3
        assert samples["http_active_connections", frozenset()] == 1
        timed = {
            status: count
            for (name, labels), count in samples.items()
            if name == "http_request_duration_seconds_count"
            for status in [dict(labels)["status"]]
            if labels == {("method", "GET"), ("path", "/api/items/{id}"), ("status", status)}
        }
        assert timed == {"200": 60, "404": 8}
    families = {
        name
        for line in text.splitlines()
        if line.startswith("# TYPE")
        for name in [" ".join(line.split()[2:])]
    }
    assert families == {
        "http_requests_total counter",
        "http_request_duration_seconds histogram",
        "http_active_connections gauge",
        "db_connections_active gauge",
        "redis_commands_total counter",
    }
    assert server.request("GET", "/metrics?name[]=redis_commands_total").status == 200


def test_labels_are_bounded(gunicorn: StartGunicorn) -> None:
    """CS-3: neither unknown paths nor unknown methods make new label values."""
    server = gunicorn()
    for number in range(5):
        server.request("GET", f"/unknown/{number}")
        server.request(f"BREW{number}", "/api/items")
    text = metrics(server)
    assert "unknown/" not in text
    assert "BREW" not in text
    assert requests_total(text, "OTHER", "<unmatched>", 405) == 5


def test_metrics_listener(gunicorn: StartGunicorn, backends: Backends) -> None:
    """CS-3: the master serves the same metrics on a port of its own, on the given network only."""
    neighbour, own = backends.postgres.network()
    server = gunicorn(METRICS_HOST=neighbour, WEB_CONCURRENCY="3")
    for _ in range(9):
        server.request("GET", "/health/live")
    url = f"http://{own}:{server.metrics_port}/metrics"
    wait_for("metrics", lambda: urllib.request.urlopen(url, timeout=2).status == 200)
    text = urllib.request.urlopen(url, timeout=2).read().decode()
    assert requests_total(text, "GET", "/health/live", 200) >= 9
    assert parse(text)["http_active_connections", frozenset()] == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.metrics_port), timeout=2)


def test_metrics_listener_without_name(gunicorn: StartGunicorn) -> None:
    """CS-3: on loopback, where nobody else can reach it."""
    server = gunicorn()
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    wait_for("metrics", lambda: urllib.request.urlopen(url, timeout=2).status == 200)
    assert {line["event"] for line in server.logs()} >= {f"metrics at {url}"}


def test_metrics_listener_without_network(gunicorn: StartGunicorn) -> None:
    """CS-3: a name nobody has is said in the log, and the application serves anyway."""
    server = gunicorn(METRICS_HOST="nowhere.invalid")
    assert server.request("GET", "/health").status == 200
    assert any("metrics listener not started" in line["event"] for line in server.logs())


def test_dead_worker_leaves_the_gauges(gunicorn: StartGunicorn) -> None:
    """CS-3: counts of a killed worker stay, its connections do not."""
    server = gunicorn(WEB_CONCURRENCY="1")
    server.request("GET", "/api/items/1")
    for number in (1, 2, 3):
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        gone = functools.partial(lambda pid: pid not in server.workers(), worker)
        wait_for("its end", gone)
        server.ready()
        server.request("GET", "/api/items/1")
        text = metrics(server)
        assert requests_total(text, "GET", "/api/items/{id}", 404) == number + 1
        assert parse(text)["db_connections_active", frozenset()] == 1


def test_metrics_start_from_nothing(gunicorn: StartGunicorn) -> None:
    """CS-3: a restart does not count what an earlier run has left in the directory."""
    first = gunicorn()
    first.request("GET", "/unknown")
    first.stop()
    second = gunicorn(PROMETHEUS_MULTIPROC_DIR=str(first.run_dir / "metrics"))
    assert requests_total(metrics(second), "GET", "<unmatched>", 404) == 0


def test_shutdown_loses_no_request(gunicorn: StartGunicorn, clean: Backends) -> None:
    """CS-2: SIGTERM lets requests under way finish, and the socket goes."""
    server = gunicorn(WEB_CONCURRENCY="2")
    answers: list[Answer] = []
    with clean.connect() as connection, connection.transaction():
        connection.execute("LOCK TABLE items")
        threads = [
            threading.Thread(target=lambda: answers.append(server.request("GET", "/api/items/1")))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_for(
            "both requests to wait",
            lambda: (
                clean.connect("app", "app-password")
                .execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE wait_event_type = 'Lock' AND application_name = 'compose-app'"
                )
                .fetchone()
                == (2,)
            ),
            5,
        )
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert answers == []
    for thread in threads:
        thread.join(10)
    assert [answer.status for answer in answers] == [404, 404]
    assert server.process.wait(10) == 0
    assert not server.socket.exists()


def test_stop_is_quick_when_idle(gunicorn: StartGunicorn) -> None:
    """CS-2: an idle instance is gone at once, even while its last workers start."""
    server = gunicorn(WEB_CONCURRENCY="4")
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 15  # graceful_timeout is 25


def test_stop_of_a_worker_that_was_just_forked() -> None:
    """CS-2: a SIGTERM between the fork and the worker's own handler is not lost."""
    swallowed = signal.signal(signal.SIGTERM, lambda *_: None)  # as gunicorn's master does
    try:
        forking.hold_sigterm()
        worker = os.fork()
        if worker == 0:
            time.sleep(0.5)
            forking.default_sigterm()
            time.sleep(5)
            os._exit(0)
        os.kill(worker, signal.SIGTERM)
        assert os.WTERMSIG(os.waitpid(worker, 0)[1]) == signal.SIGTERM
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finally:
        signal.signal(signal.SIGTERM, swallowed)


def test_instances_share_a_directory(gunicorn: StartGunicorn) -> None:
    """UT-8: each takes an index of its own, and the index of one that is gone is taken again."""
    first, second = gunicorn(), gunicorn()
    assert [server.socket.name for server in (first, second)] == ["api-1.sock", "api-2.sock"]
    assert first.socket.stat().st_mode & 0o777 == 0o770
    orphans = first.workers()
    first.stop(signal.SIGKILL)
    for worker in orphans:
        os.kill(worker, signal.SIGKILL)
    third = gunicorn()
    assert third.socket.name == "api-1.sock"
    assert second.request("GET", "/health").status == third.request("GET", "/health").status == 200


def test_no_free_index(tmp_path: Path) -> None:
    """UT-8: more instances than API_SCALE are refused, with the remedy."""
    index, lock = sockets.claim(tmp_path, "api", 1)
    assert index == 1
    with pytest.raises(sockets.NoFreeIndex, match="API_SCALE"):
        sockets.claim(tmp_path, "api", 1, patience=0.3)
    assert lock > 0


def test_logs_are_json(gunicorn: StartGunicorn) -> None:
    """CS-2: every line is JSON, gunicorn's own too; what only reads appears at debug."""
    server = gunicorn()
    server.request("DELETE", "/api/items/7", headers={"X-Request-ID": "log-me"})
    server.request("GET", "/api/items/7")
    server.request("GET", "/health")
    server.stop()
    lines = server.logs()
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == 1
    assert (
        requests[0].items()
        >= {
            "level": "info",
            "request_id": "log-me",
            "method": "DELETE",
            "route": "/api/items/{id}",
            "path": "/api/items/7",
            "status": 404,
        }.items()
    )
    assert 0 < requests[0]["duration_ms"] < 5000
    assert "timestamp" in requests[0]
    assert any(line.get("logger") == "gunicorn.error" for line in lines)


def test_debug_logs_every_request(gunicorn: StartGunicorn) -> None:
    """CS-2: at debug, those that only read appear too."""
    server = gunicorn(API_LOG_LEVEL="debug")
    server.request("GET", "/health")
    assert any(line.get("route") == "/health" for line in server.logs())


def test_healthcheck_command(gunicorn: StartGunicorn) -> None:
    """CS-6: asks this instance's own socket, is quick, and fails when nothing answers."""
    server = gunicorn()

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "compose_app", "healthcheck"],
            env=server.environ,
            capture_output=True,
            text=True,
            check=False,
        )

    healthy = check()
    assert healthy.returncode == 0, healthy.stderr
    server.stop()
    gone = check()
    assert gone.returncode == 1
    assert "unhealthy" in gone.stderr


def test_healthcheck_is_light() -> None:
    """CS-6: the health check imports neither Flask nor pydantic."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import compose_app.cli, compose_app.healthcheck, sys;"
            "print([m for m in ('flask', 'pydantic', 'psycopg') if m in sys.modules])",
        ],
        env={"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_reload(gunicorn: StartGunicorn, tmp_path: Path) -> None:
    """UT-12: with API_RELOAD=1 a changed file answers anew, also one the master has imported."""
    shutil.copytree(SRC, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "src" / "compose_app"
    server = gunicorn(PYTHONPATH=str(tmp_path / "src"), API_RELOAD="1", WEB_CONCURRENCY="1")

    def change(file: str, old: str, new: str, path: str) -> None:
        text = (package / file).read_text()
        assert old in text
        touched = 0.0

        def shown() -> bool:
            # gunicorn looks once a second, and does not see what was changed before its first look.
            nonlocal touched
            if time.monotonic() - touched > 8:
                touched = time.monotonic()
                (package / file).write_text(text.replace(old, new))
            return new.encode() in server.request("GET", path).body

        wait_for(f"{new} to be shown", shown, 60)

    change("items/routes.py", "There is no item", "Nowhere is item", "/api/items/7")
    change("__init__.py", "1.0.0", "9.9.9", "/openapi.json")
    assert server.process.poll() is None


def test_bad_configuration_ends_gunicorn(gunicorn: StartGunicorn) -> None:
    """CS-12: gunicorn does not start, and every problem is named at once."""
    server = gunicorn(
        wait=False, DATABASE_URL="mysql://x", WEB_CONCURRENCY="0", API_LOG_LEVEL="loud"
    )
    assert server.process.wait(20) != 0
    log = server.log.read_text()
    for name in ("DATABASE_URL", "WEB_CONCURRENCY", "API_LOG_LEVEL"):
        assert f"compose-app: {name}: " in log
    assert "Traceback" not in log
