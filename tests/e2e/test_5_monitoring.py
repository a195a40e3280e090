"""The profile `monitoring`: what is measured, what is alerted, and what is left when it goes."""

from __future__ import annotations

import contextlib
import json
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.dashboards import dashboards, other_queries, queries
from tests.harness import MAX_EXECUTIONS, ROOT, playbook, wait_for
from tests.monitoring import Prometheus, Receiver

from .conftest import DIRECTORY, INVENTORY, PROJECT, site_yml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Stack

pytestmark = pytest.mark.timeout(360, func_only=True)

EXPORTERS = {
    "postgres-exporter", "redis-exporter", "nginx-exporter", "nginx-log", "node-exporter",
    "blackbox-exporter",
}  # fmt: skip
SERVICES = {*EXPORTERS, "prometheus", "alertmanager"}
# Where its image can be had: from a registry, or from an archive in vendor/.
OPTIONAL = {"grafana"}
# Of panels that show something only when something is wrong, or where the kernel or a ceiling
# allows it, or of a room that has nowhere to copy to here.
QUIET = re.compile(
    r'status=~?"[45]|ALERTS|container_exit_code|_pressure_|maxmemory|redis_memory_max'
    r"|api:|offset 15s|alertmanager_notifications_failed|detected_level|mdadm|edac|hwmon|ntp|timex"
    r"|drill_last|offsite"
)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()


@pytest.fixture(scope="module")
def settings(anything: Stack, receiver: Receiver) -> dict[str, Any]:
    network = json.loads(anything.engine.run("docker", "network", "inspect", f"{PROJECT}_frontend"))
    address = f"http://{network[0]['IPAM']['Config'][0]['Gateway']}:{receiver.port}"
    return {
        "stack_profiles": ["monitoring"],
        "alertmanager_webhook_url": f"{address}/alerts",
        "alertmanager_deadman_url": f"{address}/deadman",
    }


@pytest.fixture(scope="module")
def core(anything: Stack, settings: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The containers before monitoring came."""
    anything.wait_healthy()
    return anything.lives(running=True)


@pytest.fixture(scope="module")
def monitored(anything: Stack, settings: dict[str, Any], core: dict[str, tuple[str, str]]) -> Stack:
    build = playbook(INVENTORY, name="build.yml", variables=settings, seconds=600)
    assert build.succeeded().record["failed_tasks"] == []
    site_yml(**settings).succeeded()
    anything.wait_healthy()
    return anything


def test_comes_without_touching_the_core(
    monitored: Stack, core: dict[str, tuple[str, str]], settings: dict[str, Any]
) -> None:
    """CS-7, UT-10: its services are added, and nothing that ran is restarted."""
    now = monitored.lives(running=True)
    assert {name: now.get(name) for name in core} == core
    assert set(monitored.services()) >= SERVICES
    again = site_yml(**settings).succeeded()
    assert again.record["changed_tasks"] == []
    assert again.executions <= MAX_EXECUTIONS
    said = " ".join(again.output.split())
    assert "/status (user operator, the same password)" in said
    assert monitored.lives(running=True) == now
    left_out = "left out: grafana (no release archive in vendor/, see vendor/README.md)"
    assert (left_out in said) is ("grafana" not in monitored.services())


def test_every_target_is_up(monitored: Stack) -> None:
    """CS-10, BM-6: every 15 s, under names that say what it is."""
    prometheus = Prometheus(monitored)

    def up() -> list[dict[str, Any]] | None:
        found = prometheus.get("targets", state="active")["activeTargets"]
        return found if all(item["health"] == "up" for item in found) else None

    targets = wait_for("every target up", up, 60, 1)
    jobs = {(item["labels"]["job"], item["labels"]["instance"]) for item in targets}
    assert {job for job, _ in jobs} - OPTIONAL == {
        "alertmanager", "api", "backup", "birthday-scheduler", "birthday-workers", "blackbox",
        "nginx", "nginx-log", "node", "postgres", "prometheus", "query", "rabbitmq",
        "rabbitmq-queues", "redis", "usage", "usage-rollups",
    }  # fmt: skip
    assert {("redis", "redis-cache"), ("redis", "redis-queue"), ("node", "host")} <= jobs
    assert {item["scrapeInterval"] for item in targets} == {"15s"}
    slots = {item["labels"]["slot"] for item in targets if item["labels"]["job"] == "api"}
    assert monitored.api_slot().removeprefix("api-") in slots
    for name in ("redis_up", "pg_up", "nginx_up", "probe_success"):
        assert {item["value"][1] for item in prometheus.query(name)} == {"1"}, name


def test_metrics_agree_with_what_was_asked(monitored: Stack) -> None:
    """CS-3: counted right across all workers, and by nginx as by the application."""
    prometheus = Prometheus(monitored)
    asked = (
        'sum(http_requests_total{path="/api/items/{id}",status="404"}) or vector(0)',
        'sum(nginx_responses_total{method="GET",status="404"}) or vector(0)',
        # Whatever a client calls a method, it makes one more series.
        'sum(nginx_responses_total{method="OTHER"}) or vector(0)',
    )

    def counts() -> tuple[float, ...]:
        return tuple(float(prometheus.query(query)[0]["value"][1]) for query in asked)

    before = counts()
    for _ in range(20):
        assert monitored.site.patiently("GET", "/api/items/999999").status_code == 404
    for method in ("BREW", "WHEN"):
        monitored.site.patiently(method, "/api/items")
    expected = (before[0] + 20, before[1] + 20, before[2] + 2)
    with contextlib.suppress(AssertionError):
        wait_for("all are counted", lambda: counts() == expected, 45, 1)
    assert counts() == expected


def test_every_rule_works_and_every_query_finds_something(monitored: Stack) -> None:
    """CS-11, BM-6: no panel and no rule asks for what is not there."""
    prometheus = Prometheus(monitored)
    for _ in range(5):
        monitored.site.patiently("GET", "/api/items")
        monitored.site.patiently("PUT", "/api/cache/seen", json={"value": "x", "ttl": 60})
        monitored.site.patiently("GET", "/api/cache/seen")
        monitored.site.patiently("GET", "/api/usage?tenant=seen")

    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len([rule for rule in rules if rule["type"] == "alerting"]) > 30
    wait_for(
        "every rule evaluated",
        lambda: all(
            rule["health"] == "ok"
            for group in prometheus.get("rules")["groups"]
            for rule in group["rules"]
        ),
        60,
        1,
    )

    asked = {
        query: path
        for path, dashboard in dashboards().items()
        for query in [*queries(dashboard), *other_queries(dashboard)]
        if dashboard["templating"]["list"][0]["query"] == "prometheus"
    }
    assert len(asked) > 150
    deadline = time.monotonic() + 120
    empty = list(asked)
    while empty and time.monotonic() < deadline:
        empty = [query for query in empty if not prometheus.query(query)]
        empty = [query for query in empty if not QUIET.search(query)]
        if empty:
            time.sleep(5)
    assert [f"{asked[query]}: {query}" for query in empty] == []


def test_containers_are_measured_without_the_engine(monitored: Stack) -> None:
    """BM-6: no container may ask the engine, and each is seen all the same."""
    for name, item in monitored.containers(running=True).items():
        assert "docker.sock" not in json.dumps(item["Mounts"]), name
    found = Prometheus(monitored).query("container_memory_working_set_bytes")
    named = {item["metric"]["name"].removeprefix(f"{PROJECT}-") for item in found}
    assert named == set(monitored.containers(running=True))


def test_exporters_may_read_figures_and_nothing_else(monitored: Stack) -> None:
    """BM-6: least privilege, tried."""
    name = f"{PROJECT}_backend"
    image = monitored.one("postgres")["Image"]
    user, password = monitored.login("postgres_exporter_password", "exporter")

    def ask(statement: str) -> str:
        return monitored.engine.run(
            "docker", "run", "--rm", f"--network={name}", f"--env=PGPASSWORD={password}",
            "--entrypoint=psql", image, "--no-psqlrc", "-Atq", "--host=postgres",
            f"--username={user}", "--dbname=app", "--command", statement,
            check=False,
        )  # fmt: skip

    assert ask("SELECT count(*) > 0 FROM pg_stat_activity").strip() == "t"
    assert "permission denied" in ask("SELECT * FROM public.items")
    assert "read-only transaction" in ask("CREATE TABLE public.mine (id integer)")
    for command in ("get x", "set x y", "config get maxmemory", "acl list", "keys *"):
        answer = monitored.execute(
            "redis-queue", "redis-cli", "--no-auth-warning", "--user", "exporter", "--pass", "any",
            *command.split(), check=False,
        )  # fmt: skip
        assert "NOPERM" in answer, command


def test_status_at_a_glance(monitored: Stack, settings: dict[str, Any]) -> None:
    """CS-13: the verb says it, and the page shows it to the operator alone."""
    run = playbook(INVENTORY, name="status.yml", variables=settings).succeeded()
    password = monitored.engine.run("cat", f"{DIRECTORY}/secrets/operator_password")
    assert password not in run.output
    for words in ("PostgreSQL ok", "Redis ok", "postgres-1 healthy", "days left", "per second"):
        assert words in " ".join(run.output.split()), words
    assert monitored.site.patiently("GET", "/status").status_code == 401
    page = monitored.site.patiently("GET", "/status", auth=("operator", password))
    assert page.status_code == 200
    assert "<svg" in page.text
    assert "<script" not in page.text


def test_a_broken_rule_changes_nothing(
    monitored: Stack, settings: dict[str, Any], tmp_path: Path
) -> None:
    """CS-12, bad input: refused by Prometheus' own tool before anything changes."""
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "x", "rules": [{"alert": "X", "expr": "rate(x"}]}]})
    )
    before = monitored.lives()
    run = site_yml(
        **settings,
        _prometheus_places=["config/rooms/redis"],
        _prometheus_sources=[str(tmp_path)],
    ).failed()
    assert "unclosed left parenthesis" in run.output
    assert "the live files are unchanged" in run.output
    assert monitored.lives() == before


def test_alerts_reach_the_receiver(monitored: Stack, receiver: Receiver) -> None:
    """BM-6: faults of the databases are delivered with their runbook, and so is their end."""
    wait_for("the watchdog", lambda: receiver.named("Watchdog", path="/deadman"), 60, 1)
    began = time.monotonic()
    monitored.compose("stop", "postgres", "redis-queue")
    try:
        for name in ("PostgresDown", "RedisDown"):
            alert = wait_for(name, partial(receiver.named, name), 180, 1)
            print(f"{name} delivered after {time.monotonic() - began:.0f} s")
            assert alert["labels"]["severity"] == "critical"
            path, _, anchor = alert["annotations"]["runbook"].partition("#")
            headings = re.findall(r"^## (.+)$", (ROOT / path).read_text(), re.MULTILINE)
            assert anchor in {heading.lower() for heading in headings}
    finally:
        monitored.compose("start", "postgres", "redis-queue")
    monitored.wait_healthy()
    for name in ("PostgresDown", "RedisDown"):
        wait_for(f"the end of {name}", partial(receiver.named, name, "resolved"), 150, 1)


def test_goes_without_a_trace(monitored: Stack, settings: dict[str, Any]) -> None:
    """CS-7: without the profile its containers are gone, and the core was not touched."""
    core = {
        name: life
        for name, life in monitored.lives(running=True).items()
        if name.removesuffix("-1") not in SERVICES | OPTIONAL
    }
    site_yml().succeeded()
    assert monitored.lives(running=True) == core
    wait_for(
        "the collector has ended",
        lambda: not monitored.engine.succeeds("pgrep", "-f", f"{DIRECTORY}/services/host"),
        40,
        1,
    )
    assert site_yml().succeeded().record["changed_tasks"] == []
