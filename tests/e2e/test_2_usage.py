"""UT-1 to UT-4: usage events from the public address to the hypertable and its roll-ups."""

from __future__ import annotations

import datetime
import gzip
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import wait_for

if TYPE_CHECKING:
    from tests.harness import Stack

pytestmark = pytest.mark.timeout(180, func_only=True)


def events(tenant: str, count: int) -> list[dict[str, Any]]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return [
        {
            "event_id": uuid.uuid4().hex,
            "tenant": tenant,
            "metric": "requests",
            "quantity": 1,
            "time": now,
        }
        for _ in range(count)
    ]


def send(stack: Stack, items: list[dict[str, Any]]) -> None:
    answer = stack.site.patiently(
        "POST",
        "/api/usage/events",
        data=gzip.compress("\n".join(map(json.dumps, items)).encode()),
        headers={"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"},
    )
    assert answer.status_code == 202, answer.text
    assert answer.json() == {"accepted": len(items)}


ROLLUPS = ("usage_minutes", "usage_hours", "usage_days")


def counted(stack: Stack, tenant: str, table: str = "usage_events") -> int:
    what = "sum(events)" if table in ROLLUPS else "count(*)"
    query = f"SELECT coalesce({what}, 0) FROM {table} WHERE tenant = '{tenant}'"
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "app", "-XAtc")
    return int(stack.execute("postgres", *psql, query))


def test_largest_batch_is_counted(stack: Stack) -> None:
    """UT-1, UT-2, UT-4: ten thousand events at once, as one request through nginx."""
    tenant = f"t-{uuid.uuid4().hex}"
    send(stack, events(tenant, 10_000))
    for table in ("usage_events", *ROLLUPS):
        wait_for(f"all in {table}", lambda t=table: counted(stack, tenant, t) == 10_000, 60, 0.5)  # type: ignore[misc]
    page = stack.site.patiently("GET", f"/api/usage?tenant={tenant}&bucket=minute").json()
    assert sum(item["events"] for item in page["buckets"]) == 10_000
    assert {item["metric"] for item in page["buckets"]} == {"requests"}


def test_query_service_is_apart(stack: Stack) -> None:
    """UT-3: gone, usage is still accepted and counted; nginx says 503, and it comes back alone."""
    query = stack.one(stack.api_slot().replace("api-", "query-"))["Id"]
    tenant = f"t-{uuid.uuid4().hex}"
    stack.engine.run("docker", "kill", "--signal=KILL", query)
    try:
        assert stack.site.get(f"/api/usage?tenant={tenant}").status_code == 503
        send(stack, events(tenant, 100))
        wait_for("all are counted", lambda: counted(stack, tenant) == 100, 60, 0.5)
    finally:
        stack.engine.run("docker", "start", query)
    stack.wait_healthy(60)
    path = f"/api/usage?tenant={tenant}&bucket=day"
    wait_for("all can be read", lambda: stack.site.get(path).json()["buckets"][0]["events"] == 100)


@pytest.mark.parametrize("service", ["processor", "aggregator", "redis-queue", "postgres"])
def test_killed_with_events_in_the_queue(stack: Stack, service: str) -> None:
    """UT-2, UT-4: accepted before a kill, counted after it, once; sending again changes nothing."""
    tenant = f"t-{uuid.uuid4().hex}"
    first, second = events(tenant, 4000), events(tenant, 4000)
    container = stack.one(service)["Id"]
    send(stack, first)
    send(stack, second)
    stack.engine.run("docker", "kill", "--signal=KILL", container)
    # Docker does not restart what was killed by command.
    stack.engine.run("docker", "start", container)
    stack.wait_healthy(60)
    wait_for("all are counted", lambda: counted(stack, tenant) == 8000, 90, 0.5)
    send(stack, first)
    send(stack, events(tenant, 1))  # the last in the queue: whatever is counted twice came before
    wait_for("the newest is counted", lambda: counted(stack, tenant) > 8000, 60, 0.5)
    assert counted(stack, tenant) == 8001
    for table in ROLLUPS:
        wait_for(f"all in {table}", lambda t=table: counted(stack, tenant, t) == 8001, 60, 0.5)  # type: ignore[misc]
