"""A release that is killed after every task, and in the middle of those that take their time."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.bench.__main__ import INVENTORY, Bench
from tests.figures import page, write
from tests.harness import ROOT, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Run, Site

PAGE = ROOT / "docs" / "proofs" / "interruptions.md"
# What takes longer is also killed in its middle.
LONG_SECONDS = 1.5
PREFIX = "TASK ["
# `moments` needs how long each task has taken.
TIMED = {"ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks,run_record"}
NOTES = """\
- Each row is a release that changes a setting of the API, one of nginx and one of redis-queue. It
  was killed with SIGKILL, with all that it had started, when the task had ended or in its middle.
- From before the run until after the next one `GET /api/items` was sent every 50 ms; what failed is
  in the row. Then the same command was run again, and had to end with every setting in force.
- The tasks are those that did something in a release that nobody killed.
"""

pytestmark = pytest.mark.timeout(7200)


@dataclass
class Client:
    """Asks all the time, and keeps what went wrong."""

    site: Site
    asked: int = 0
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            self.asked += 1
            try:
                status = self.site.get("/api/items?limit=1").status_code
            except OSError as error:
                self.failures.append(repr(error))
            else:
                if status != 200:
                    self.failures.append(str(status))


def settings(turn: int) -> dict[str, Any]:
    """What differs from the turn before, in three services."""
    return {
        "api_log_level": ("info", "warning")[turn % 2],
        "nginx_hsts_seconds": 2_000_000 + turn,
        "redis_queue_memory_mb": (160, 176)[turn % 2],
        "nginx_rate_limit": 100000,
        "nginx_rate_burst": 100000,
    }


def in_force(bench: Bench, wanted: dict[str, Any]) -> bool:
    """Whether what runs is what was asked for."""
    stack = bench.stack
    environment = stack.services()[stack.api_slot()][0]["Config"]["Env"]
    promised = stack.site.get("/health").headers["Strict-Transport-Security"]
    return (
        f"API_LOG_LEVEL={wanted['api_log_level']}" in environment
        and promised == f"max-age={wanted['nginx_hsts_seconds']}"
        and stack.one("redis-queue")["HostConfig"]["Memory"]
        == wanted["redis_queue_memory_mb"] << 20
        and bench.latest_release()["slot"] == stack.api_slot().removeprefix("api-")
    )


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench("compose-stack-killed", "/opt/compose-stack-killed", 48081, 48444)
    found.run("build.yml", seconds=600)
    found.clean()
    yield found
    found.clean()


def moments(run: Run) -> list[tuple[str, float]]:
    """Where to kill: at which task's beginning, and how many seconds later."""
    found: list[tuple[str, float]] = []
    parts = run.output.split(PREFIX)[1:]
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        name = f"{PREFIX}{part.partition(']')[0]}]"
        if not re.search(r"^(changed|ok): ", part, re.MULTILINE):
            continue
        if after is not None:
            found.append((f"{PREFIX}{after.partition(']')[0]}]", 0))
        took = re.search(rf"^{re.escape(name[6:-1])} -+ ([\d.]+)s", run.output, re.MULTILINE)
        if took and float(took[1]) > LONG_SECONDS:
            found.append((name, float(took[1]) / 2))
    # A task that is named twice is met at its first place.
    return list(dict.fromkeys(found))


def test_killed_anywhere(bench: Bench) -> None:
    """BM-10, FS-3: clients notice nothing, and the next run ends where it should."""
    bench.run(**settings(0))
    usual = playbook(INVENTORY, variables={**bench.variables, **settings(1)}, environment=TIMED)
    rows = []
    for turn, (task, later) in enumerate(moments(usual.succeeded()), 2):
        wanted = settings(turn)
        variables = {**bench.variables, **wanted}
        with Client(bench.stack.site) as client:
            killed = playbook(
                INVENTORY,
                variables=variables,
                interrupt_at=task,
                kill_after=later,
            )
            assert killed.returncode != 0, f"{task} {later}"
            began = time.monotonic()
            again = playbook(INVENTORY, variables=variables)
            seconds = time.monotonic() - began
            time.sleep(0.5)
        reached = again.returncode == 0 and in_force(bench, wanted)
        name = task.removeprefix(PREFIX).removesuffix("]")
        where = f"{later:.1f} s into `{name}`" if later else f"before `{name}`"
        rows.append((where, client, reached, seconds))
        said = f"{len(client.failures)} of {client.asked}"
        print(f"{where}: {said} failed, {'reached' if reached else 'NOT reached'}", flush=True)
        if not reached:
            print(again.output[-3000:], flush=True)
    lines = ["| Killed | Failed of sent | Next run |", "|---|---|---|"]
    lines += [
        f"| {where} | {len(client.failures)} of {client.asked} "
        f"| {'all in force' if reached else '**not there**'}, {seconds:.0f} s |"
        for where, client, reached, seconds in rows
    ]
    text = "\n".join(lines)
    write(PAGE, page("Interruptions", "make prove", f"{text}\n\n{NOTES}"))
    assert [where for where, _, reached, _ in rows if not reached] == []
    assert [(where, client.failures) for where, client, _, _ in rows if client.failures] == []
