"""Releases: kept, listed, and brought back whole."""

from __future__ import annotations

import datetime
import json
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from plugins.module_utils.bake import read
from plugins.module_utils.traffic import SocketConnection, ask
from tests.harness import ROOT, copy_tree, playbook
from tests.public import assert_headers
from tests.traffic import Traffic, add_slow_route

from .conftest import DIRECTORY, INVENTORY, site_yml
from .test_3_failures import refused, serving

if TYPE_CHECKING:
    from tests.harness import Run, Stack

pytestmark = pytest.mark.timeout(300, func_only=True)

VERSIONS = ROOT / "app" / "src" / "compose_app" / "migrations" / "versions"
HEAD = max(path.name[:4] for path in VERSIONS.glob("[0-9]*.py"))
RELEASES = Path(DIRECTORY, "state", "releases")


def rollback(**variables: Any) -> Run:
    return playbook(INVENTORY, name="rollback.yml", variables=variables)


def latest() -> dict[str, Any]:
    number = max(int(path.name) for path in RELEASES.iterdir())
    record: dict[str, Any] = json.loads((RELEASES / str(number) / "release.json").read_text())
    return record


def setting(stack: Stack, name: str) -> str:
    environment = stack.services()[stack.api_slot()][0]["Config"]["Env"]
    return str(dict(line.split("=", 1) for line in environment)[name])


def standing_by(stack: Stack) -> dict[str, Any]:
    """The container of the version before."""
    (item,) = (
        items[0]
        for name, items in stack.services().items()
        if name.startswith("api-") and name != stack.api_slot()
    )
    return item


def test_there_and_back_and_there_again(stack: Stack) -> None:
    """BM-10: a release, a rollback, a rollback of the rollback; no request is lost.

    The version before stands by and takes over as it is; where it is gone, it is started again.
    """
    before = latest()["number"]
    first = stack.one(stack.api_slot())["State"]
    started = time.time()
    with serving(stack):
        site_yml(api_log_level="debug", stack_reason="more to read").succeeded()
    record = latest()
    assert record["number"] == before + 1
    assert (record["why"], record["schema"]) == ("more to read", HEAD)
    began = datetime.datetime.fromisoformat(record["began"])
    assert began.utcoffset() == datetime.timedelta()
    assert started - 1 < began.timestamp() < record["at"]
    assert record["receipt"]["after"]["failed"] == 0
    assert record["images"]["api"] == stack.services()[stack.api_slot()][0]["Config"]["Image"]

    with serving(stack):
        run = rollback().succeeded()
    assert stack.one(stack.api_slot())["State"]["StartedAt"] == first["StartedAt"]
    assert latest()["receipt"]["after"]["failed"] == 0
    assert f"{before + 2}: back to release {before} " in " ".join(run.output.split())
    assert setting(stack, "API_LOG_LEVEL") == "info"

    second = standing_by(stack)
    stack.engine.run("docker", "rm", "--force", second["Id"])
    with serving(stack):
        rollback().succeeded()
    assert stack.one(stack.api_slot())["Id"] != second["Id"]
    assert setting(stack, "API_LOG_LEVEL") == "debug"
    assert latest()["why"] == f"back to release {before + 1}"

    listed = playbook(INVENTORY, name="releases.yml").succeeded()
    assert listed.changed == 0
    (line,) = (line for line in listed.output.splitlines() if "(serves)" in line)
    assert f"back to release {before + 1}" in line

    # The next change takes the place of what stands by, and leaves the proxy alone.
    proxy, second = stack.one("nginx")["State"], standing_by(stack)
    with serving(stack):
        site_yml(api_log_level="warning").succeeded()
    assert second["Id"] not in {item["Id"] for items in stack.services().values() for item in items}
    assert stack.one("nginx")["State"]["StartedAt"] == proxy["StartedAt"]

    with serving(stack):
        rollback(rollback_to=before, stack_reason="as it was").succeeded()
    assert setting(stack, "API_LOG_LEVEL") == "info"
    assert site_yml().succeeded().changed == 0


def test_a_damaged_record_hides_no_other(stack: Stack) -> None:
    """BM-10: the list names it with its path, and shows the others."""
    numbers = sorted(int(path.name) for path in RELEASES.iterdir())
    record = RELEASES / str(numbers[0]) / "release.json"
    whole = record.read_bytes()
    record.write_bytes(whole[:100])
    try:
        listed = playbook(INVENTORY, name="releases.yml").succeeded().output
    finally:
        record.write_bytes(whole)
    assert re.search(rf"\b{numbers[0]}  damaged: {record}: ", listed)
    for number in numbers[1:]:
        assert re.search(rf"\b{number}  20\d\d-", listed), number
    assert listed.count("(serves)") == 1


def test_a_rollback_that_the_engine_refuses(stack: Stack) -> None:
    """BM-10: found out after the version before serves again at once; then that is undone."""
    site_yml(api_log_level="debug").succeeded()
    slot, ran = stack.api_slot(), stack.lives(running=True)
    with serving(stack):
        run = rollback(_stack_standby={"services": {}})
    refused(run, "missing required arguments: label")
    assert stack.api_slot() == slot
    assert stack.lives(running=True) == ran
    rollback().succeeded()
    assert stack.api_slot() != slot
    site_yml().succeeded()


def test_release_under_load(stack: Stack, tmp_path: Path) -> None:
    """BM-10: writes on kept connections, an upload of 1 MB, requests of 8 s: none fails."""
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    for version in ("old", "new"):
        copy_tree(ROOT / "app" / "src", tmp_path / version)
        add_slow_route(tmp_path / version, 8)
    unlimited = {"nginx_rate_limit": 100000, "nginx_rate_burst": 100000}
    site_yml(api_source_dir=str(tmp_path / "old"), **unlimited).succeeded()
    with Traffic(stack.site, per_second=20) as traffic:
        time.sleep(3)
        site_yml(api_source_dir=str(tmp_path / "new"), **unlimited).succeeded()
        time.sleep(1)
    assert traffic.failures == []
    assert traffic.lost(stack) == []
    assert len(traffic.acknowledged) > 100
    assert {answer.kind for answer in traffic.answers} == {"POST", "PUT", "GET"}
    site_yml().succeeded()


def test_release_while_postgres_restarts(stack: Stack) -> None:
    """BM-10: the old version or the new one serves at the end, and what was written is there."""
    postgres = stack.one("postgres")["Id"]
    restart = threading.Timer(10, stack.engine.run, ["docker", "restart", postgres])
    with Traffic(stack.site, per_second=5, uploads=0, long_requests=0) as traffic:
        restart.start()
        run = site_yml(stack_reason="postgres restarts", api_stop_seconds=70)
        restart.join()
        stack.wait_healthy()
    if run.returncode:
        refused(run, "What ran before runs on")
    assert latest()["why"] == ("" if run.returncode else "postgres restarts")
    assert {answer.failure[:8] for answer in traffic.failures} <= {"HTTP 503"}
    assert len(traffic.acknowledged) > 20
    assert traffic.lost(stack) == []
    site_yml().succeeded()
    assert site_yml().succeeded().changed == 0


def test_scale(stack: Stack) -> None:
    """UT-8: more containers and fewer again, each with a share of the requests; none is lost."""

    def counts() -> list[int]:
        """Containers of the API, the query service, the processor and the worker."""
        slot, found = stack.api_slot().removeprefix("api-"), stack.services()
        names = (f"api-{slot}", f"query-{slot}", "processor", "worker")
        return [len(found[name]) for name in names]

    with serving(stack):
        site_yml(
            api_scale=3, usage_query_scale=2, usage_processor_scale=2, birthdays_worker_scale=2
        ).succeeded()
    assert counts() == [3, 2, 2, 2]
    directory = Path(DIRECTORY, "run", "sockets", stack.api_slot().removeprefix("api-"))
    for application, scale, path in (
        ("api", 3, "/api/items?limit=1"),
        ("query", 2, "/api/usage?tenant=scale"),
    ):
        for _ in range(15):
            assert stack.site.patiently("GET", path).status_code == 200
        served = []
        for index in range(1, scale + 1):
            connection = SocketConnection(directory / f"{application}-{index}.sock", 10)
            served.append(read(ask(connection, "/metrics", "localhost")[1].decode()).count)
            connection.close()
        assert sum(served) >= 15
        assert min(served) >= 2, served
    with serving(stack):
        site_yml().succeeded()
    assert counts() == [1, 1, 1, 1]


def test_maintenance(stack: Stack) -> None:
    """BM-10: all but operators get 503 with Retry-After, monitoring sees the stack as it is."""

    def switch(state: str) -> Run:
        run = playbook(INVENTORY, name="maintenance.yml", variables={"maintenance_state": state})
        return run.succeeded()

    said = " ".join(switch("on").output.split())
    found = re.search(r"open https://localhost:\d+(/maintenance/[0-9a-f]{32}) first", said)
    assert found is not None, said
    try:
        answer = stack.site.get("/api/items")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json()["detail"] == "Down for maintenance; try again soon."
        page = stack.site.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 503
        assert "Back soon" in page.text
        assert_headers(page)
        assert stack.site.get("/static/maintenance.css").status_code == 200
        assert stack.site.get("/health").status_code == 200

        passed = stack.site.get(found[1])
        assert (passed.status_code, passed.headers["Location"]) == (303, "/")
        assert_headers(passed)
        cookie = passed.headers["Set-Cookie"].split(";")[0]
        assert stack.site.get("/api/items", headers={"Cookie": cookie}).status_code == 200
        for wrong in ("maintenance=../on", f"maintenance={'0' * 32}", "maintenance="):
            refusal = stack.site.get("/api/items", headers={"Cookie": wrong})
            assert refusal.status_code == 503, wrong
        assert stack.site.get(f"/maintenance/{'0' * 32}").status_code == 404
        assert switch("on").changed == 0
    finally:
        switch("off")
    assert stack.site.patiently("GET", "/api/items").status_code == 200
    assert stack.site.patiently("GET", found[1]).status_code == 404
    assert switch("off").changed == 0


def test_what_cannot_be_brought_back(stack: Stack) -> None:
    """BM-10: refused with what there is, and nothing has changed."""
    with serving(stack):
        run = rollback(rollback_to=9999)
        refused(run, "release 9999 cannot be read", "kept are: ", "Nothing was changed")
    assert run.record["changed_tasks"] == []
