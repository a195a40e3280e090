"""Fifty releases in a row under load, and the same change by Compose alone."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench.__main__ import Bench
from tests.figures import Figure, page, table, write
from tests.harness import ROOT, copy_tree
from tests.traffic import POSTERS, Traffic, add_slow_route

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = ROOT / "docs" / "proofs" / "releases.md"
RELEASES = 50
LONG_SECONDS = 20
STEADY_SECONDS = 30
UNLIMITED: dict[str, Any] = {"nginx_rate_limit": 100000, "nginx_rate_burst": 100000}
NOTES = f"""\
- Writes: 40 a second over {POSTERS} kept connections with TLS, at a fixed rate whether or not the
  ones before have been answered; each counts from the moment it was due and is never tried again.
  With them one upload of 1 MB after the other, each taking 5 s, and two requests of
  {LONG_SECONDS} s at a time. Every acknowledged write was looked for in the database afterwards.
- Each release exchanges the application's source. It takes as long as the containers need to start
  and to finish requests of {LONG_SECONDS} s, and 5 s of watching; the switch itself is a rename.
- Compose alone: `docker compose up --detach --no-deps --force-recreate --wait` of the serving
  container, as a change of its image or environment would have it.
"""

pytestmark = pytest.mark.timeout(4800)


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Two versions of the application, with a route that takes its time."""
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    for version in ("one", "two"):
        copy_tree(ROOT / "app" / "src", tmp_path / version)
        add_slow_route(tmp_path / version, LONG_SECONDS)
    return [str(tmp_path / "one"), str(tmp_path / "two")]


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


def test_releases(bench: Bench, sources: list[str]) -> None:
    """BM-10: no failed request, no lost write; by Compose alone, side by side."""
    bench.run(api_source_dir=sources[0], **UNLIMITED)
    bench.stack.wait_healthy()
    windows: list[tuple[float, float]] = []
    switches: list[float] = []
    with Traffic(bench.stack.site) as ours:
        began = time.monotonic()
        time.sleep(STEADY_SECONDS)
        steady = (began, time.monotonic())
        for number in range(1, RELEASES + 1):
            start = time.monotonic()
            bench.run(api_source_dir=sources[number % 2], **UNLIMITED)
            windows.append((start, time.monotonic()))
            switches.append(bench.latest_release()["receipt"]["switch_ms"])
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
    figures = [
        Figure(
            f"failed of sent, {RELEASES} releases in a row",
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
            "a whole release, requests of 20 s finished",
            f"{statistics.median(end - start for start, end in windows):.0f} s",
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
