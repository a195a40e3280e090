"""UT-3: /api/usage and the query service."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compose_app.app import build_query_app
from compose_app.config import DatabaseSettings
from compose_app.usage.rollups import RollupStore
from compose_app.usage.store import Queued, UsageStore
from conftest import READER, Backends, StartGunicorn

DAY = datetime.timedelta(days=1)
NOON = (datetime.datetime.now(datetime.UTC) - 2 * DAY).replace(
    hour=12, minute=0, second=0, microsecond=0
)


def environ(backends: Backends) -> dict[str, str]:
    """What the container of the query service is given."""
    names = ("DATABASE_URL", "DATABASE_PASSWORD_FILE")
    url, password = (backends.environ[name] for name in names)
    return {
        "API_APPLICATION": "query",
        "DATABASE_URL": url.replace("app@", "app_query@"),
        "DATABASE_PASSWORD_FILE": password.removesuffix("app") + "query",
    }


@pytest.fixture
def query(clean: Backends) -> Iterator[FlaskClient]:
    app = build_query_app(DatabaseSettings.from_environ(environ(clean)))
    yield app.test_client()
    for close in app.extensions["compose_app.close"]:
        close()


def use(backends: Backends, *events: tuple[str, str, datetime.datetime, float]) -> None:
    """Count and roll up: tenant, metric, time, quantity."""
    store = UsageStore(backends.environ["DATABASE_URL"], "app-password")
    rollups = RollupStore(backends.environ["DATABASE_URL"], "app-password")
    store.add(
        [
            Queued("1-1", 0, [uuid.uuid4().hex, tenant, metric, quantity, time.isoformat()])
            for tenant, metric, time, quantity in events
        ]
    )
    while rollups.add():
        pass
    store.close()
    rollups.close()


def ask(client: FlaskClient, **parameters: Any) -> Any:
    answer = client.get("/api/usage", query_string=parameters)
    assert answer.status_code == 200, answer.get_data()
    return answer.get_json()


def stamp(moment: datetime.datetime) -> str:
    return moment.isoformat()


def at(**offset: float) -> datetime.datetime:
    return NOON + datetime.timedelta(**offset)


def test_buckets(query: FlaskClient, clean: Backends) -> None:
    """UT-3: by tenant, metric and bucket; nobody else's, and nothing beyond the range."""
    use(
        clean,
        ("acme", "requests", at(seconds=1), 1),
        ("acme", "requests", at(seconds=59), 2.5),
        ("acme", "requests", at(minutes=1), 4),
        ("acme", "bytes", at(hours=1), 1000),
        ("acme", "requests", at(days=1), 8),
        ("other", "requests", at(seconds=1), 99),
    )
    span = {"tenant": "acme", "from": stamp(NOON), "to": stamp(NOON + DAY)}
    minutes = ask(query, bucket="minute", metric="requests", **span)
    assert minutes["buckets"] == [
        {"metric": "requests", "bucket": stamp(NOON), "quantity": 3.5, "events": 2},
        {"metric": "requests", "bucket": stamp(at(minutes=1)), "quantity": 4.0, "events": 1},
    ]
    assert minutes["next_cursor"] is None
    hours = ask(query, **span)["buckets"]
    assert [(item["metric"], item["bucket"], item["quantity"]) for item in hours] == [
        ("bytes", stamp(at(hours=1)), 1000.0),
        ("requests", stamp(NOON), 7.5),
    ]
    first = stamp(NOON.replace(hour=0))
    days = ask(query, bucket="day", tenant="acme", metric="requests", **{"from": first})["buckets"]
    assert [(item["bucket"], item["events"]) for item in days] == [
        (first, 3),
        (stamp(NOON.replace(hour=0) + DAY), 1),
    ]
    assert ask(query, tenant="nobody")["buckets"] == []


def test_without_a_range(query: FlaskClient, clean: Backends) -> None:
    """UT-3: the last day."""
    now = datetime.datetime.now(datetime.UTC)
    use(clean, ("acme", "m", now - DAY / 2, 1), ("acme", "m", now - 2 * DAY, 5))
    assert [item["quantity"] for item in ask(query, tenant="acme")["buckets"]] == [1.0]
    until = stamp(now - 1.5 * DAY)
    assert [item["quantity"] for item in ask(query, tenant="acme", to=until)["buckets"]] == [5.0]


def test_as_of(query: FlaskClient, clean: Backends) -> None:
    """UT-3: how far the roll-ups are."""
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
    use(clean, ("acme", "m", NOON, 1))
    assert datetime.datetime.fromisoformat(ask(query, tenant="acme")["as_of"]) > before
    since = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    with clean.connect() as connection:
        connection.execute(
            "INSERT INTO usage_changes (tenant, metric, minute, quantity, events, changed_at)"
            " VALUES ('acme', 'm', %s, 1, 1, %s)",
            (NOON, since),
        )
    assert datetime.datetime.fromisoformat(ask(query, tenant="acme")["as_of"]) == since


_USES = st.tuples(st.sampled_from(["a", "b", "a.b"]), st.integers(0, 60 * 24 * 20))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    uses=st.lists(_USES, max_size=12),
    limit=st.integers(1, 4),
    unit=st.sampled_from(["minute", "hour", "day"]),
    metric=st.sampled_from([None, "a"]),
)
def test_pages(
    query: FlaskClient,
    clean: Backends,
    uses: list[tuple[str, int]],
    limit: int,
    unit: str,
    metric: str | None,
) -> None:
    """UT-3: whatever their size, the pages hold each bucket once, in order."""
    with clean.connect() as connection:
        connection.execute("TRUNCATE usage_minutes, usage_hours, usage_days, usage_event_ids")
    use(clean, *[("t", name, at(minutes=-minutes), 1) for name, minutes in uses])
    span = {"tenant": "t", "bucket": unit, "from": stamp(at(days=-30)), "to": stamp(at(days=1))}
    if metric:
        span["metric"] = metric
    whole = ask(query, limit=1000, **span)
    assert whole["next_cursor"] is None
    found: list[Any] = []
    cursor: str | None = None
    while cursor is not None or not found:
        page = ask(query, limit=limit, **span, **({"cursor": cursor} if cursor else {}))
        assert len(page["buckets"]) <= limit
        found += page["buckets"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == whole["buckets"]
    keys = [(item["metric"], item["bucket"]) for item in found]
    assert keys == sorted(set(keys))
    expected = [name for name, _ in uses if metric in (None, name)]
    assert sum(item["events"] for item in found) == len(expected)


BAD: list[tuple[str, list[str]]] = [
    ("tenant", ["", "a b", "a\0", "x" * 65]),
    ("metric", ["", "-", "a/b"]),
    ("bucket", ["", "week", "Minute"]),
    ("from", ["", "now", "2026-01-01", "2026-01-01T00:00:00", "9999-12-31T23:59:59-14:00"]),
    ("to", ["yesterday", "2026-13-01T00:00:00Z", "0001-01-01T12:00:00Z"]),
    ("limit", ["0", "1001", "-1", "1.5", "٣"]),
    ("cursor", ["x", "AQAAAAAAAAAB", "Ajk5OTk5OTk5OTk5OTk5OTk5OSBh", "AmEgYQ=="]),
    ("unknown", ["1"]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, all_ in BAD for value in all_])
def test_bad_values(query: FlaskClient, name: str, value: str) -> None:
    """UT-3: the field is named."""
    answer = query.get("/api/usage", query_string={"tenant": "acme", name: value})
    assert answer.status_code == 422, answer.get_data()
    assert {tuple(item["location"][:2]) for item in answer.get_json()["errors"]} == {
        ("query", name)
    }


def test_tenant_is_asked_for(query: FlaskClient) -> None:
    """UT-3: without one, nothing is read."""
    answer = query.get("/api/usage")
    assert answer.status_code == 422
    assert answer.get_json()["errors"][0]["location"] == ["query", "tenant"]


def test_nothing_else(query: FlaskClient) -> None:
    """UT-3: a service of its own: what the API does, it does not."""
    assert query.get("/health").status_code == 200
    assert query.get("/api/items").status_code == 404
    assert query.post("/api/usage/events", json={}).status_code == 404


def test_what_its_role_may(clean: Backends) -> None:
    """UT-3: read usage, and that alone."""
    with clean.connect("app_query", READER) as connection:
        for table in ("usage_minutes", "usage_hours", "usage_days", "usage_changes"):
            connection.execute(f"SELECT count(*) FROM {table}")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"DELETE FROM {table}")
        for table in ("items", "users", "usage_events", "usage_event_ids"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT count(*) FROM {table}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT drop_usage_chunks('usage_events', now())")


def test_as_a_process(gunicorn: StartGunicorn, clean: Backends) -> None:
    """UT-3: beside the API in the same directory, on a socket of its own name; 503 in 3 s."""
    api = gunicorn()
    server = gunicorn(**environ(clean), REDIS_CACHE_URL="", REDIS_CACHE_PASSWORD_FILE="")
    assert (api.socket.name, server.socket.name) == ("api-1.sock", "query-1.sock")
    assert server.request("GET", "/api/usage?tenant=acme").status == 200
    assert server.request("GET", "/api/items").status == 404
    with clean.connect() as connection:
        row = connection.execute(
            "SELECT usename FROM pg_stat_activity WHERE application_name = 'compose-app query'"
        ).fetchone()
        assert row == ("app_query",)
    clean.postgres.pause()
    try:
        answer = server.request("GET", "/api/usage?tenant=acme")
        assert answer.status == 503
        assert answer.seconds < 3
        assert answer.headers["Retry-After"]
    finally:
        clean.postgres.unpause()
