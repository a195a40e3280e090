"""CS-2: PostgreSQL or Redis gone, frozen or cut off: 503 within 3 s, and back without a restart."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from compose_app.app import build_app
from compose_app.config import Settings
from conftest import Backends, Gunicorn, wait_for

LIMIT = 3.0
"""Seconds."""


@pytest.fixture(scope="module")
def server(backends: Backends) -> Iterator[Gunicorn]:
    with tempfile.TemporaryDirectory(prefix="app-") as directory:
        server = Gunicorn(backends.environ, Path(directory), WEB_CONCURRENCY="2")
        try:
            yield server.ready()
        finally:
            server.stop()


def _warm(server: Gunicorn) -> None:
    """Give every worker its connections."""

    def healthy() -> bool:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: server.request("GET", "/health"), range(20)))
        return all(answer.status == 200 for answer in answers)

    wait_for("health", healthy)
    assert server.request("PUT", "/api/cache/k", {"value": 1, "ttl": 600}).status == 200


def _refused(server: Gunicorn, *requests: tuple[str, str, object]) -> None:
    for method, path, body in requests:
        answer = server.request(method, path, body)
        assert answer.status == 503, (path, answer.body)
        assert answer.seconds < LIMIT, path
        assert int(answer.headers["Retry-After"]) >= 1
        if path != "/health":
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.json["type"] == "/docs#problem-service-unavailable"


def _crowd(server: Gunicorn, path: str) -> None:
    """Many at once wait no longer than one: no worker sits out its time-out again and again."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.request("GET", path), range(32)))
    assert {answer.status for answer in answers} == {503}
    assert max(answer.seconds for answer in answers) < LIMIT


DATABASE = [
    ("GET", "/api/items", None),
    ("GET", "/api/items/1", None),
    ("POST", "/api/items", {"name": "during", "price_cents": 1}),
    ("DELETE", "/api/items/1", None),
    ("GET", "/health", None),
]
CACHE = [
    ("GET", "/api/cache/k", None),
    ("PUT", "/api/cache/k", {"value": 2, "ttl": 600}),
    ("GET", "/health", None),
]


@pytest.mark.parametrize("way", ["pause", "stop"])
def test_database_gone(server: Gunicorn, backends: Backends, way: str) -> None:
    """CS-2: without PostgreSQL items answer 503, the cache goes on, and liveness is untouched."""
    _warm(server)
    getattr(backends.postgres, way)()
    try:
        _crowd(server, "/api/items/1")
        _refused(server, *DATABASE)
        health = server.request("GET", "/health").json
        assert health == {"status": "unavailable", "database": "unavailable", "redis": "ok"}
        assert server.request("GET", "/api/cache/k").status == 200
        assert server.request("GET", "/health/live").status == 200
        assert server.request("GET", "/metrics").status == 200
    finally:
        {"pause": backends.postgres.unpause, "stop": backends.postgres.start}[way]()
    workers = server.workers()
    _warm(server)
    assert server.request("GET", "/api/items").status == 200
    assert server.workers() == workers


@pytest.mark.parametrize("way", ["pause", "stop"])
def test_redis_gone(server: Gunicorn, backends: Backends, way: str) -> None:
    """CS-2: without Redis the cache answers 503 and items go on."""
    _warm(server)
    getattr(backends.cache, way)()
    try:
        _crowd(server, "/api/cache/k")
        _refused(server, *CACHE)
        health = server.request("GET", "/health").json
        assert health == {"status": "unavailable", "database": "ok", "redis": "unavailable"}
        assert server.request("GET", "/api/items").status == 200
        assert server.request("GET", "/health/live").status == 200
    finally:
        {"pause": backends.cache.unpause, "stop": backends.cache.start}[way]()
    workers = server.workers()
    _warm(server)
    assert server.request("GET", "/api/cache/k").status == 200
    assert server.workers() == workers


@pytest.mark.parametrize("way", ["pause", "stop"])
def test_queue_gone(server: Gunicorn, backends: Backends, way: str) -> None:
    """CS-2: the Redis that no route uses yet is told of as well, where there is one."""
    _warm(server)
    getattr(backends.queue, way)()
    try:
        _crowd(server, "/health")
        _refused(server, ("GET", "/health", None))
        health = server.request("GET", "/health").json
        assert health == {"status": "unavailable", "database": "ok", "redis": "unavailable"}
        assert server.request("GET", "/api/cache/k").status == 200
        assert server.request("GET", "/api/items").status == 200
        lost = [line for line in server.logs() if line["event"] == "dependency lost"]
        assert lost[-1]["dependency"] == "redis-queue"
        alone = {k: v for k, v in backends.environ.items() if not k.startswith("REDIS_QUEUE_")}
        client = build_app(Settings.from_environ(alone)).test_client()
        assert client.get("/health").status_code == 200
    finally:
        {"pause": backends.queue.unpause, "stop": backends.queue.start}[way]()
    workers = server.workers()
    _warm(server)
    assert server.workers() == workers


def test_all_frozen(server: Gunicorn, backends: Backends) -> None:
    """CS-2: readiness keeps its limit when it waits for all of them."""
    _warm(server)
    backends.postgres.pause()
    backends.cache.pause()
    backends.queue.pause()
    try:
        for _ in range(3):
            answer = server.request("GET", "/health")
            assert answer.status == 503
            assert answer.seconds < LIMIT
    finally:
        backends.postgres.unpause()
        backends.cache.unpause()
        backends.queue.unpause()
    _warm(server)


def test_connections_closed_by_the_server(server: Gunicorn, backends: Backends) -> None:
    """CS-2: connections that died while idle cost no request, not even one that writes."""
    _warm(server)
    with backends.connect() as connection:
        connection.execute("TRUNCATE items")
    backends.postgres.stop()
    backends.postgres.start()
    backends.wait()
    for number in range(8):
        answer = server.request("POST", "/api/items", {"name": f"n{number}", "price_cents": 1})
        assert answer.status == 201, answer.body
    backends.cache.stop()
    backends.cache.start()
    backends.wait()
    for _ in range(8):
        answer = server.request("PUT", "/api/cache/k", {"value": 1, "ttl": 60})
        assert answer.status == 200, answer.body


def test_slow_statement_is_cancelled(server: Gunicorn, backends: Backends) -> None:
    """CS-2: a statement that waits for a lock ends with 503 too, and keeps its connection."""
    _warm(server)
    with backends.connect() as connection, connection.transaction():
        connection.execute("LOCK TABLE items")
        answer = server.request("GET", "/api/items/1")
        assert answer.status == 503
        assert answer.seconds < LIMIT
    wait_for("items", lambda: server.request("GET", "/api/items").status == 200)


def test_cancelled_statement_leaves_the_database_alone(backends: Backends) -> None:
    """CS-2: the server has answered, so the worker refuses no other request because of it."""
    with tempfile.TemporaryDirectory(prefix="app-") as directory:
        server = Gunicorn(backends.environ, Path(directory), WEB_CONCURRENCY="1")
        try:
            server.ready()
            _warm(server)
            with backends.connect() as connection, connection.transaction():
                connection.execute("LOCK TABLE items")
                assert server.request("GET", "/api/items/1").status == 503
                assert server.request("GET", "/health").status == 200
            assert any(line["event"] == "statement cancelled" for line in server.logs())
        finally:
            server.stop()
