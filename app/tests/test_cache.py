"""CS-2: /api/cache."""

from __future__ import annotations

import time
from typing import Any

import pytest
from flask.testing import FlaskClient

from conftest import Backends


@pytest.mark.parametrize(
    "value", ["text", "", 0, 1.5, True, None, [1, "a"], {"a": {"b": []}}, "\0", "é\U0001f600"]
)
def test_put_then_get(client: FlaskClient, value: Any) -> None:
    """CS-2: any JSON value comes back as it was."""
    put = client.put("/api/cache/k", json={"value": value, "ttl": 60})
    assert (put.status_code, put.get_json()) == (200, {"key": "k", "value": value, "ttl": 60})
    got = client.get("/api/cache/k")
    assert got.status_code == 200
    assert got.get_json()["value"] == value
    assert 58 <= got.get_json()["ttl"] <= 60


def test_absent(client: FlaskClient) -> None:
    """CS-2: 404."""
    answer = client.get("/api/cache/absent")
    assert answer.status_code == 404
    assert answer.get_json()["type"] == "/docs#problem-key-not-found"


def test_expires(client: FlaskClient) -> None:
    """CS-2: gone after ttl seconds."""
    client.put("/api/cache/k", json={"value": 1, "ttl": 1})
    assert client.get("/api/cache/k").status_code == 200
    time.sleep(1.1)
    assert client.get("/api/cache/k").status_code == 404


def test_replaces(client: FlaskClient) -> None:
    """CS-2: a second PUT replaces value and ttl."""
    client.put("/api/cache/k", json={"value": 1, "ttl": 1000})
    client.put("/api/cache/k", json={"value": 2, "ttl": 10})
    entry = client.get("/api/cache/k").get_json()
    assert entry["value"] == 2
    assert entry["ttl"] <= 10


def test_keys_have_a_prefix(client: FlaskClient, clean: Backends) -> None:
    """CS-2: the API reaches no other key of Redis."""
    clean.client().set("other", "x")
    assert client.get("/api/cache/other").status_code == 404
    client.put("/api/cache/other", json={"value": 1, "ttl": 9})
    assert clean.client().get("other") == b"x"


@pytest.mark.parametrize(
    "body",
    [
        {"value": 1},
        {"ttl": 1},
        {"value": 1, "ttl": 0},
        {"value": 1, "ttl": -5},
        {"value": 1, "ttl": 2**63},
        {"value": 1, "ttl": 10**40},
        {"value": 1, "ttl": 30 * 24 * 3600 + 1},
        {"value": 1, "ttl": 1.5},
        {"value": 1, "ttl": "60"},
        {"value": 1, "ttl": None},
        {"value": 1, "ttl": 1, "other": 2},
        [],
    ],
)
def test_invalid_bodies(client: FlaskClient, body: Any) -> None:
    """CS-2: 422."""
    assert client.put("/api/cache/k", json=body).status_code == 422


@pytest.mark.parametrize("key", ["x" * 201, "a b", "%00", "é", "a%0a", "a*", "%0d%0aSET"])
def test_invalid_keys(client: FlaskClient, key: str) -> None:
    """CS-2: 422."""
    assert client.get(f"/api/cache/{key}").status_code == 422
    assert client.put(f"/api/cache/{key}", json={"value": 1, "ttl": 1}).status_code == 422


def test_large_and_deep_values(client: FlaskClient) -> None:
    """CS-2: what is taken can be given back; what is too much is refused."""
    value: Any = "x"
    for _ in range(62):
        value = [value]
    for fits in (value, "x" * 1_000_000):
        assert client.put("/api/cache/k", json={"value": fits, "ttl": 9}).status_code == 200
        assert client.get("/api/cache/k").get_json()["value"] == fits
    assert client.put("/api/cache/k", json={"value": [[value]], "ttl": 9}).status_code == 400
    assert client.put("/api/cache/k", json={"value": "x" * 2**20, "ttl": 9}).status_code == 413
