"""`compose-app smoke`: what a client does, without a server.

A release lets the version that serves run it on a copy of the database that the new version has
migrated. What it writes stays there. `compose-app smoke database` does what needs no Redis: where a
drill has restored the database there is none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from uuid import uuid4

from flask.testing import FlaskClient
from werkzeug.test import TestResponse


class SmokeError(Exception):
    """An answer was not what it should be."""


def main(*, database_alone: bool = False) -> int:
    """Return 0 when every operation answers as it should, else 1 with the reasons on stderr."""
    # Its counters are nobody's: they must not lie beside those of workers that serve.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    from compose_app import create_app

    client = create_app().test_client()
    failed = False
    for step in STEPS:
        if database_alone and step in OF_REDIS:
            continue
        try:
            step(client)
        except SmokeError as error:
            print(f"smoke: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _expect(answer: TestResponse, status: int) -> TestResponse:
    if answer.status_code != status:
        request = answer.request
        raise SmokeError(
            f"{request.method} {request.path} answered {answer.status_code} instead of {status}: "
            f"{answer.get_data(as_text=True)[:300].strip()}"
        )
    return answer


def _health(client: FlaskClient) -> None:
    _expect(client.get("/health"), 200)


def _items(client: FlaskClient) -> None:
    item = {"name": f"smoke {uuid4()}", "description": "", "price_cents": 1, "quantity": 1}
    path = _expect(client.post("/api/items", json=item), 201).headers["Location"]
    _expect(client.get("/api/items?limit=1"), 200)
    _expect(client.get(path), 200)
    _expect(client.delete(path), 204)
    _expect(client.get(path), 404)


def _coupons(client: FlaskClient) -> None:
    name = f"smoke {uuid4()}"
    path = _expect(client.post("/api/coupons", json={"name": name, "amount": 2}), 201).headers
    claim = {"user_id": "smoke", "coupon_name": name}
    _expect(client.post("/api/coupons/claim", json=claim), 201)
    _expect(client.post("/api/coupons/claim", json=claim), 409)
    batch = {"coupon_name": name, "user_ids": ["smoke", "more", "most"]}
    _expect(client.post("/api/coupons/claim/batch", json=batch), 200)
    _expect(client.get(path["Location"]), 200)


def _users(client: FlaskClient) -> None:
    user = {
        "first_name": "Smoke",
        "last_name": "Test",
        "birthday": "2000-02-29",
        "time_zone": "Etc/UTC",
        "email": f"{uuid4().hex}@example.org",
    }
    path = _expect(client.post("/api/user", json=user), 201).headers["Location"]
    _expect(client.put(path, json={**user, "time_zone": "Asia/Tokyo"}), 200)
    _expect(client.get(path), 200)
    _expect(client.delete(path), 204)


def _usage(client: FlaskClient) -> None:
    answer = client.get("/api/usage?tenant=smoke&bucket=minute&limit=1")
    if answer.status_code != 404:  # usage is not tracked
        _expect(answer, 200)


def _cache(client: FlaskClient) -> None:
    path = f"/api/cache/smoke-{uuid4()}"
    _expect(client.put(path, json={"value": "smoke", "ttl": 1}), 200)
    _expect(client.get(path), 200)


STEPS: tuple[Callable[[FlaskClient], None], ...] = (
    _health,
    _items,
    _coupons,
    _users,
    _usage,
    _cache,
)
OF_REDIS = (_health, _cache)
"""What no database can answer alone."""
