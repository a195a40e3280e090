"""A host that loses its power in the middle of a release, and comes back by itself."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import requests

from tests.bench.__main__ import INVENTORY
from tests.figures import page, write
from tests.harness import ROOT, playbook, wait_for
from tests.prove.machine import Machine, missing
from tests.prove.test_interruptions import PREFIX, TIMED, moments, settings
from tests.prove.world import PSQL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Site, Stack

PAGE = ROOT / "docs" / "proofs" / "power.md"
# How many of the moments to take; all would take an hour.
CUTS = int(os.environ.get("POWER_CUTS", "24"))
SERVES_SECONDS = 120
SERVICES = ["postgres", "redis", "api", "nginx"]
NOTES = """\
- The host is the one of `molecule test`, its own systemd and Docker included, with all that it
  keeps (`/etc`, `/var`, `/opt`, `/home`, `/root`) on an ext4 file system of its own. To cut its
  power is to shut that file system down without writing anything (`FS_IOC_SHUTDOWN`, as the tests
  of Linux' file systems do) and to kill every process at once. **Lost is what the kernel had not
  sent to the disk; what it had sent is there**: a disk whose cache is not volatile, or is flushed
  when it is told so. The kernel itself is this machine's and goes on; the next start replays the
  file system's journal, and systemd and Docker boot from what they find.
- Each row is a release that changes a setting of the API, one of nginx and one of redis-queue, or
  brings another image of the API. *After power-on* says what served before anybody did anything:
  the version of the API, nginx' settings, and redis-queue's container. The seconds count from
  power-on to 200 from `/health`. Once the rendered configuration is in place, containers of the old
  release that are booted read what is new of the files they read at a start, until the next run.
- From before the run until after the next one items were posted, 20 a second: each 201 was looked
  for in the database at the end of its row.
- `make status`, `releases` and `journal` were asked before the *next run*, which was the same
  command again, and had to end with everything in force; once more it had to change nothing.
"""

HEAD = (
    "| Power cut | After power-on served | Serves after | Lost of acknowledged | Next run |",
    "|---|---|---|---|---|",
)

pytestmark = pytest.mark.timeout(5400)


@dataclass
class Writer:
    """Posts items all the time, and keeps the names of those that were acknowledged."""

    site: Site
    acknowledged: set[str] = field(default_factory=set)

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
            name = f"power-{uuid.uuid4()}"
            item = {"name": name, "description": "", "price_cents": 1, "quantity": 1}
            try:
                if self.site.request("POST", "/api/items", json=item, timeout=3).status_code == 201:
                    self.acknowledged.add(name)
            except (OSError, requests.RequestException):
                pass  # nothing was acknowledged


@dataclass(frozen=True)
class Release:
    """What a run is asked for."""

    settings: dict[str, Any]
    archive: Path

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "stack_services": SERVICES,
            "stack_image_source": "archive",
            "images_archive": str(self.archive),
            "api_scale": 1,
            "api_watch_seconds": 2,
            **self.settings,
        }

    @property
    def wanted(self) -> dict[str, str]:
        """What each service shows when the release is in force."""
        memory = self.settings["redis_queue_memory_mb"] << 20
        return {
            "API": f"{self.archive.stem} {self.settings['api_log_level']}",
            "nginx": f"max-age={self.settings['nginx_hsts_seconds']}",
            "redis-queue": str(memory),
            "its settings": str((self.settings["redis_queue_memory_mb"] * 6 // 10) << 20),
        }


@dataclass
class Row:
    """What came of one cut."""

    when: str
    interrupted: bool = True
    served: str = "**nothing**"
    seconds: float | None = None
    acknowledged: int = 0
    lost: int = 0
    next_run: str = ""
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        seconds = "-" if self.seconds is None else f"{self.seconds:.0f} s"
        lost = f"{'**' * bool(self.lost)}{self.lost}{'**' * bool(self.lost)}"
        found = f"**{'; '.join(self.faults)}**" if self.faults else self.next_run
        return (
            f"| {self.when} | {self.served} | {seconds} | {lost} of {self.acknowledged} | {found} |"
        )


def shown(stack: Stack) -> dict[str, str]:
    """What each service shows, as `Release.wanted` says it."""
    api = stack.one(stack.api_slot())["Config"]
    level = next(line for line in api["Env"] if line.startswith("API_LOG_LEVEL="))
    version = re.search(r":power-(\w+)$", api["Image"])
    info = stack.execute("redis-queue", "redis-cli", "--no-auth-warning", "--user", "exporter",
                         "--pass", "exporter", "info", "memory")  # fmt: skip
    most = re.search(r"^maxmemory:(\d+)", info, re.MULTILINE)
    assert most is not None, info
    limit = stack.one("redis-queue")["HostConfig"]["Memory"]
    return {
        "API": f"{version[1] if version else '?'} {level.partition('=')[2]}",
        "nginx": stack.site.get("/health").headers["Strict-Transport-Security"],
        "redis-queue": str(limit),
        "its settings": most[1],
    }


def named(found: dict[str, str], old: Release, new: Release) -> str:
    """Which release each service is of; one word when they agree."""

    def which(part: str) -> str:
        if found[part] == old.wanted[part]:
            return "old"
        return "new" if found[part] == new.wanted[part] else f"neither ({found[part]})"

    parts = {part: which(part) for part in found}
    if len(set(parts.values())) == 1:
        return parts["API"]
    return ", ".join(f"{part} {release}" for part, release in parts.items())


def archives(directory: Path, count: int) -> list[Path]:
    """Archives that differ in the API's image alone, by enough to take a while."""
    first = directory / "first.tar"
    variables = {"stack_services": SERVICES, "bundle_path": str(first)}
    run = playbook(INVENTORY, name="bundle.yml", variables=variables, seconds=900).succeeded()
    images = dict.fromkeys(re.findall(r"compose-stack/\w+:\w+", run.output.split("Say what")[-1]))
    first.unlink()
    (api,) = (name for name in images if name.startswith("compose-stack/api:"))
    found = []
    for number in range(count):
        tag = f"compose-stack/api:power-{number}"
        # What it starts from is written anew, so that it is what is lost.
        recipe = (
            f"FROM {api}\nUSER root\n"
            f"RUN for each in /usr/lib/python3.*; do cp -a $each /copy && rm -rf $each && "
            f"mv /copy $each && echo {number} > $each/version; done\nUSER 10001:10001\n"
        )
        subprocess.run(
            ["docker", "build", "--quiet", f"--tag={tag}", "-"],
            input=recipe, text=True, check=True,
        )  # fmt: skip
        path = directory / f"{number}.tar"
        others = [name for name in images if name != api]
        subprocess.run(["docker", "save", "--output", path, tag, *others], check=True)
        subprocess.run(["docker", "image", "rm", tag], check=True, capture_output=True)
        found.append(path)
    return found


def moments_of(machine: Machine, release: Release) -> list[tuple[str, float]]:
    """Where to cut in a release of settings: after what was done on the host, or in its middle."""
    usual = machine.run(variables=release.variables, environment=TIMED).succeeded()
    done = {task for task, _ in usual.record["executions"]}
    tasks = re.findall(r"^TASK \[(.*?)\] \*", usual.output, re.MULTILINE)
    before = {f"{PREFIX}{after}]": task for task, after in itertools.pairwise(tasks)}
    found = [(task, later) for task, later in moments(usual) if later or before.get(task) in done]
    step = max(1.0, len(found) / CUTS)
    return [found[int(turn * step)] for turn in range(min(CUTS, len(found)))]


def cut(machine: Machine, row: Row, old: Release, new: Release, go: Callable[[], None]) -> Row:
    """Have `go` end in the dark, and see what comes back, and whether the next run gets there."""
    stack = machine.stack
    with Writer(stack.site) as writer:
        time.sleep(1)
        go()
        machine.power_on()
        try:
            wait_for("200 from /health", stack.site.answers, SERVES_SECONDS, 0.1)
            row.seconds = time.monotonic() - machine.powered_on
            machine.wait_for_boot()
            row.served = named(shown(stack), old, new)
        except AssertionError as error:
            row.faults.append(f"after power-on: {str(error).splitlines()[0]}")
        machine.wait_for_boot()
        look(machine, row)
        again = machine.run(variables=new.variables)
        time.sleep(0.5)
    if again.returncode != 0:
        row.faults.append("the next run failed")
        print(again.output[-5000:], flush=True)
        return row
    if shown(stack) != new.wanted:
        row.faults.append(f"the next run led to {named(shown(stack), old, new)}")
    row.next_run = f"all in force, {again.seconds:.0f} s"
    once_more = machine.run(variables=new.variables)
    if once_more.returncode != 0 or once_more.changed:
        row.faults.append(f"once more it changed {once_more.record.get('changed_tasks')}")
    asked = "SELECT name FROM items WHERE name LIKE 'power-%'"
    found = set(stack.execute("postgres", *PSQL, "-d", "app", "-c", asked).split())
    row.acknowledged, row.lost = len(writer.acknowledged), len(writer.acknowledged - found)
    return row


def look(machine: Machine, row: Row) -> None:
    """What an operator asks for first: `make status`, `make releases` and `make journal`."""
    looks = [f"playbooks/{verb}.yml" for verb in ("releases", "journal")]
    run = machine.run(*looks, name="status.yml", variables={"stack_services": SERVICES})
    if run.returncode != 0:
        failed = run.record.get("failed_tasks")
        row.faults.append(f"`make status`, `releases` or `journal` failed: {failed}")
        print(run.output[-3000:], flush=True)
        return
    if "damaged" in run.output:
        row.faults.append("a release is damaged")
    if row.interrupted != ("no end" in entries(run.output)[-1]):
        row.faults.append("the journal does not tell of the run")


def entries(output: str) -> list[str]:
    """The runs that the journal tells of, oldest first."""
    return re.findall(r"^.*  site[.]yml  .*$", output, re.MULTILINE)


def interrupted(machine: Machine, release: Release, task: str, later: float) -> None:
    run = machine.run(
        variables=release.variables,
        interrupt_at=task,
        kill_after=later,
        before_kill=machine.cut,
    )
    assert run.returncode != 0, f"{task} {later}"


def test_power() -> None:
    """BM-10, FS-3: whenever the power goes, the stack comes back by itself, and a run ends well."""
    if lacking := missing():
        pytest.fail(f"A host with a disk of its own cannot be made here: {lacking}")
    rows: list[Row] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="compose-stack-power.", dir="/var/tmp") as directory,
            Machine.made(Path(directory)) as machine,
        ):
            for row in prove(machine, archives(Path(directory), 4)):
                print(row.text(), flush=True)
                rows.append(row)
    finally:
        text = "\n".join((*HEAD, *(row.text() for row in rows)))
        write(PAGE, page("Power", "make prove", f"{text}\n\n{NOTES}"))
    assert [(row.when, row.faults) for row in rows if row.faults] == []
    assert [(row.when, row.lost) for row in rows if row.lost] == []


def prove(machine: Machine, bundles: list[Path]) -> Iterator[Row]:
    """One cut after the other, each from what the one before has led to."""
    turn = 0
    first = Release(settings(turn), bundles[0])
    machine.run(variables=first.variables, seconds=600).succeeded()
    now = first

    def release(when: str, task: str, later: float, bundle: Path) -> Row:
        nonlocal now, turn
        turn += 1
        old, now = now, Release(settings(turn), bundle)
        new = now
        return cut(machine, Row(when), old, new, lambda: interrupted(machine, new, task, later))

    yield cut(machine, Row("while nothing is under way", False), now, now, machine.cut)
    reboot = Row("none: `systemctl reboot`", False)
    yield cut(machine, reboot, now, now, machine.shut_down)
    loading, loaded = f"{PREFIX}images : Load the images", f"{PREFIX}images : Remove the copy"
    starting = f"{PREFIX}stack : Start what is new"
    for when, task, later, bundle in (
        ("2 s into `images : Load the images`", loading, 2.0, bundles[1]),
        ("when `images : Load the images` has ended", loaded, 0.0, bundles[2]),
        ("2 s into `stack : Start what is new`, of a new image", starting, 2.0, bundles[3]),
    ):
        yield release(when, task, later, bundle)
    turn += 1
    now = Release(settings(turn), bundles[3])
    for task, later in moments_of(machine, now):
        name = task.removeprefix(PREFIX).removesuffix("]")
        when = f"{later:.1f} s into `{name}`" if later else f"before `{name}`"
        yield release(when, task, later, bundles[3])
    yield rolled_back(machine, now)


def rolled_back(machine: Machine, now: Release) -> Row:
    """Back to the release before, after all that."""
    turn = now.settings["nginx_hsts_seconds"] - 2_000_000 - 1
    row = Row("none: `make rollback`, after all that", interrupted=False)
    run = machine.run(name="rollback.yml", variables=now.variables)
    row.next_run = f"rolled back, {run.seconds:.0f} s"
    before = Release(settings(turn), now.archive)
    if run.returncode != 0 or shown(machine.stack) != before.wanted:
        row.faults.append("the rollback failed")
        print(run.output[-3000:], flush=True)
    else:
        row.served = "the release before"
    return row
