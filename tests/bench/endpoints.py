"""How long each endpoint takes at half of what it can do, through nginx."""

from __future__ import annotations

import itertools
import json
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from plugins.module_utils.traffic import Address, PublicConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Stack

CLIENTS = 8
SECONDS = 8
"""For which each is asked, once as fast as it answers and once at half of that pace."""

_COUNTER = itertools.count()


@dataclass(frozen=True)
class Found:
    """One endpoint."""

    name: str
    limit: float
    """Requests per second when each client sends the next as soon as it has an answer."""
    p99_ms: float
    """At half of the limit, from when each request was due."""


def _user() -> dict[str, Any]:
    return {
        "first_name": "Ada",
        "last_name": "Lovelace",
        "birthday": "1990-12-10",
        "time_zone": "Europe/London",
        "email": f"{uuid.uuid4().hex}@bench.example",
    }


def _item() -> dict[str, Any]:
    return {"name": uuid.uuid4().hex, "description": "", "price_cents": 1, "quantity": 1}


def _event() -> dict[str, Any]:
    return {
        "event_id": uuid.uuid4().hex,
        "tenant": "bench",
        "metric": "requests",
        "quantity": 1,
        "time": datetime.now(UTC).isoformat(),
    }


def _endpoints(item: int, user: int) -> dict[str, tuple[str, str, Callable[[], object] | None]]:
    return {
        "GET /health": ("GET", "/health", None),
        "GET /api/items": ("GET", "/api/items", None),
        "GET /api/items/{id}": ("GET", f"/api/items/{item}", None),
        "POST /api/items": ("POST", "/api/items", _item),
        "GET /api/coupons/{name}": ("GET", "/api/coupons/bench-p99", None),
        "POST /api/coupons/claim": (
            "POST",
            "/api/coupons/claim",
            lambda: {"coupon_name": "bench-p99", "user_id": f"u{next(_COUNTER)}"},
        ),
        "GET /api/user/{id}": ("GET", f"/api/user/{user}", None),
        "POST /api/user": ("POST", "/api/user", _user),
        "PUT /api/user/{id}": ("PUT", f"/api/user/{user}", _user),
        "GET /api/cache/{key}": ("GET", "/api/cache/bench", None),
        "PUT /api/cache/{key}": ("PUT", "/api/cache/bench", lambda: {"value": "x", "ttl": 60}),
        "POST /api/usage/events": ("POST", "/api/usage/events", _event),
        "GET /api/usage": ("GET", "/api/usage?tenant=bench&bucket=minute", None),
    }


def measure(stack: Stack) -> list[Found]:
    """Each endpoint on its own, one after the other."""
    made = stack.site.request("POST", "/api/items", json=_item()).json()["id"]
    user = stack.site.request("POST", "/api/user", json=_user()).json()["id"]
    stack.site.request("POST", "/api/coupons", json={"name": "bench-p99", "amount": 1_000_000})
    stack.site.request("PUT", "/api/cache/bench", json={"value": "x", "ttl": 600})
    found = []
    for name, (method, path, body) in _endpoints(made, user).items():
        _run(stack, method, path, body, None, 1)  # warm
        times = _run(stack, method, path, body, None, SECONDS)
        limit = len(times) / SECONDS
        times = _run(stack, method, path, body, limit / 2, SECONDS)
        found.append(Found(name, limit, statistics.quantiles(times, n=100)[98]))
    return found


def _run(
    stack: Stack,
    method: str,
    path: str,
    body: Callable[[], object] | None,
    pace: float | None,
    seconds: float,
) -> list[float]:
    """Milliseconds of each answer, at a pace per second or as fast as they come."""
    site = stack.site
    start = time.monotonic() + 0.1
    times: list[float] = []

    def client(which: int) -> None:
        connection = PublicConnection(Address(site.address, site.https_port, site.name, "/"), 10)
        headers = {"Host": site.name, "Content-Type": "application/json"}
        for turn in itertools.count(which, CLIENTS):
            due = start + turn / pace if pace else time.monotonic()
            if due > start + seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            data = None if body is None else json.dumps(body())
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status < 300, f"{method} {path}: {answer.status}"
            times.append((time.monotonic() - due) * 1000)
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    return times
