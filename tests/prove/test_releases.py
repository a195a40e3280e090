"""Fifty releases in a row under load, and the same change by Compose alone."""

from __future__ import annotations

import re
import statistics
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench.__main__ import INVENTORY, Bench
from tests.figures import Figure, page, table, write
from tests.harness import ROOT, copy_tree, playbook
from tests.traffic import POSTERS, Traffic, add_slow_route

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs" / "proofs" / "releases.md"
RELEASES = 50
ROLLBACKS = 3
VERSIONS = ("one", "two", "three")
LONG_SECONDS = 20
STEADY_SECONDS = 30
UNLIMITED: dict[str, Any] = {"nginx_rate_limit": 100000, "nginx_rate_burst": 100000}
NOTES = f"""\
- Writes: 40 a second over {POSTERS} kept connections with TLS, at a fixed rate whether or not the
  ones before have been answered; each counts from the moment it was due and is never tried again.
  With them one upload of 1 MB after the other, each taking 5 s, and two requests of
  {LONG_SECONDS} s at a time. Every acknowledged write was looked for in the database afterwards.
- Each release exchanges the application's source, and is watched for 5 s; the switch itself is a
  rename. One that was taken back would have ended the proof.
- Compose alone: `docker compose up --detach --no-deps --force-recreate --wait` of the serving
  container, as a change of its image or environment would have it.
"""

pytestmark = pytest.mark.timeout(4800)


def sources(directory: Path, seconds: float) -> list[str]:
    """Three versions of the application, with a route that takes its time.

    Of two, one would always stand by, and be taken as it is instead of started.
    """
    for each in (directory, directory.parent, directory.parent.parent):
        each.chmod(0o755)
    for version in VERSIONS:
        copy_tree(ROOT / "app" / "src", directory / version)
        add_slow_route(directory / version, seconds)
    return [str(directory / version) for version in VERSIONS]


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench("compose-stack-releases", "/opt/compose-stack-releases", 48080, 48443)
    found.run("build.yml", seconds=600)
    found.clean()
    yield found
    found.clean()


def failed(traffic: Traffic) -> str:
    kinds = {
        kind: sum(answer.kind == kind for answer in traffic.answers)
        for kind in ("POST", "PUT", "GET")
    }
    sent = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"{len(traffic.failures)} of {len(traffic.answers)} ({sent})"


@dataclass
class Steps:
    """Seconds that the parts of one release took."""

    whole: float
    start: float
    switch: float
    container: float


def release(bench: Bench, source: str) -> Steps:
    """Exchange the application's source, and tell how long what took."""
    began = time.monotonic()
    run = playbook(
        INVENTORY,
        variables={**bench.variables, **UNLIMITED, "api_source_dir": source},
        environment={"ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks"},
    ).succeeded()

    def seconds(task: str) -> float:
        took = re.search(rf"^stack : {re.escape(task)} -+ ([\d.]+)s", run.output, re.MULTILINE)
        assert took is not None, task
        return float(took[1])

    state = bench.stack.one(bench.stack.api_slot())["State"]
    healthy = next(check for check in state["Health"]["Log"] if check["ExitCode"] == 0)
    return Steps(
        time.monotonic() - began,
        seconds("Start what is new or changed and wait until it is healthy"),
        seconds("Switch to the slot that is healthy and watch it"),
        (moment(healthy["End"]) - moment(state["StartedAt"])).total_seconds(),
    )


def moment(text: str) -> datetime:
    """Docker's own form: nanoseconds, and an offset or Z."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text))


def rollback(bench: Bench) -> tuple[float, float]:
    """Seconds until the version before, which stands by, serves; and until all is done."""
    link = Path(bench.directory, "run", "sockets", "active")
    before, moved = link.readlink(), []
    began = time.monotonic()

    def look() -> None:
        while link.readlink() == before:
            time.sleep(0.005)
        moved.append(time.monotonic() - began)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    bench.run("rollback.yml")
    whole = time.monotonic() - began
    watcher.join(5)
    return moved[0], whole


def test_releases(bench: Bench, tmp_path: Path) -> None:
    """BM-10: no failed request, no lost write; by Compose alone, side by side."""
    versions = sources(tmp_path, LONG_SECONDS)
    bench.run(api_source_dir=versions[0], **UNLIMITED)
    bench.stack.wait_healthy()
    windows: list[tuple[float, float]] = []
    switches: list[float] = []
    steps: list[Steps] = []
    rollbacks: list[tuple[float, float]] = []
    with Traffic(bench.stack.site) as ours:
        began = time.monotonic()
        time.sleep(STEADY_SECONDS)
        steady = (began, time.monotonic())
        for number in range(1, RELEASES + 1):
            start = time.monotonic()
            steps.append(release(bench, versions[number % 3]))
            windows.append((start, time.monotonic()))
            switches.append(bench.latest_release()["receipt"]["switch_ms"])
        for _ in range(ROLLBACKS):
            rollbacks.append(rollback(bench))  # noqa: PERF401  each is timed by itself
    lost = ours.lost(bench.stack)

    with Traffic(bench.stack.site) as plain:
        time.sleep(5)
        for _ in range(RELEASES // 10):
            slot = bench.stack.api_slot()
            bench.stack.compose(
                "up", "--detach", "--no-deps", "--force-recreate", "--wait", slot, seconds=300
            )
            time.sleep(2)

    before = ours.p99_ms(*steady)
    during = statistics.median(ours.p99_ms(*window) for window in windows)
    whole, start, switch, container = (
        statistics.median(getattr(step, part) for step in steps)
        for part in ("whole", "start", "switch", "container")
    )
    moved, back = (statistics.median(times) for times in zip(*rollbacks, strict=True))
    figures = [
        Figure(
            f"failed of sent, {RELEASES} releases in a row and {ROLLBACKS} rollbacks",
            failed(ours),
            "0",
            not ours.failures,
        ),
        Figure("acknowledged writes that are not in the database", str(len(lost)), "0", not lost),
        Figure(
            "p99 of writes during a release / before the first",
            f"{during / before:.1f} ({during:.0f} ms / {before:.0f} ms)",
        ),
        Figure("the switch", f"{statistics.median(switches):.2f} ms"),
        Figure(
            "a whole release / until its container was healthy, from its start",
            f"{whole:.0f} s / {container:.1f} s",
        ),
        Figure(
            "of which: start of the new slot; switch and watch; all else",
            f"{start:.1f} s; {switch:.1f} s; {whole - start - switch:.1f} s",
        ),
        Figure(
            "rollback to the version that stands by: it serves after / all is done after",
            f"{moved:.1f} s / {back:.0f} s",
        ),
        Figure(
            f"failed of sent, {RELEASES // 10} times by Compose alone",
            failed(plain),
        ),
    ]
    write(PAGE, page("Releases", "make prove", f"{table(figures)}\n\n{NOTES}"))
    print(table(figures))
    assert ours.failures == []
    assert lost == []
    assert plain.failures, "the load would not notice a release that loses requests"
