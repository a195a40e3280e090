"""What backups cost, what a restore takes, and what is lost with a disk."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import statistics
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import requests

from tests.harness import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness import Run, Stack

ROWS = 400_000
"""Of a kilobyte each, that do not compress."""
ROUNDS = 3
SECONDS = 10
WRITERS = 4
KEEPER = ("python3", "/etc/compose-stack/current/bin/keeper.py")
LATEST = ("plan", "--until", "latest")
PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-XAtqc")
PGBENCH = ("pgbench", "-h", "/run/postgresql", "-U", "postgres")
FILL = (
    "CREATE TABLE bench_filler AS SELECT n, (SELECT string_agg(md5(n || '.' || m), '')"
    f" FROM generate_series(1, 30) m) FROM generate_series(1, {ROWS}) n"
)


@dataclass(frozen=True)
class Found:
    """Seconds, megabytes and transactions per second."""

    with_backup: float
    without_backup: float
    megabytes: float
    copied: float
    """A plain copy of the database's files, on the disk."""
    restored: float
    away: float
    """Longest time without an answer while the restored database took the place."""
    drilled: float
    acknowledged: int
    lost_with_the_disk: int
    oldest_lost: float
    """Seconds before the loss at which the oldest lost write was sent."""
    killed: int
    lost_by_kill: int


class Writer:
    """Creates items all the time, by several clients, and knows which were acknowledged."""

    def __init__(self, stack: Stack) -> None:
        self.written: list[tuple[float, str]] = []
        self.answered: list[float] = []
        self._stack = stack
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, daemon=True) for _ in range(WRITERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        with self._stack.site.session() as session:
            while not self._stop.is_set():
                name, sent = uuid.uuid4().hex, time.time()
                try:
                    answer = session.post(
                        self._stack.site.url("/api/items"),
                        json={"name": name, "price_cents": 1},
                        headers={"Host": self._stack.site.name},
                        timeout=10,
                    )
                except requests.RequestException:
                    continue
                if answer.status_code == 201:
                    self.written.append((sent, name))
                    self.answered.append(time.time())
                else:
                    self._stop.wait(0.05)

    def lost(self) -> list[float]:
        """When the acknowledged writes were sent that are not there."""
        query = "SELECT name FROM items"
        there = set(self._stack.execute("postgres", *PSQL, query, "-d", "app").split())
        return [sent for sent, name in self.written if name not in there]


def measure(stack: Stack, data: Path, restore: Callable[[], Run]) -> Found:
    """With the databases on the disk, in `data`, and no limit of rate."""
    rates = throughput(stack)
    stack.execute("postgres", *PSQL, FILL, "-d", "app")
    backed_up(stack)

    copy = data.parent / "bench-copy"
    began = time.monotonic()
    shutil.copytree(data / "pgdata", copy)
    stack.engine.run("sync")
    copied = time.monotonic() - began
    megabytes = sum(path.stat().st_size for path in copy.rglob("*") if path.is_file()) / 1e6
    shutil.rmtree(copy)

    with Writer(stack) as writer:
        restored = restore().seconds
    away = max(later - sooner for sooner, later in itertools.pairwise(sorted(writer.answered)))
    backed_up(stack)
    drilled = float(keeper(stack, "drill")["seconds"])

    with Writer(stack) as killed:
        time.sleep(5)
        running = [item["Id"] for item in stack.containers(running=True).values()]
        stack.engine.run("docker", "kill", *running)
    stack.compose("up", "--detach", "--wait")
    lost_by_kill = killed.lost()

    backed_up(stack)
    with Writer(stack) as unlucky:
        time.sleep(5)
        lost = time.time()
        stack.engine.run("docker", "kill", stack.one("postgres")["Id"])
        shutil.rmtree(data / "pgdata")
    restore()
    gone = unlucky.lost()
    return Found(
        with_backup=statistics.median(rates[True]),
        without_backup=statistics.median(rates[False]),
        megabytes=megabytes,
        copied=copied,
        restored=restored,
        away=away,
        drilled=drilled,
        acknowledged=len(unlucky.written),
        lost_with_the_disk=len(gone),
        oldest_lost=lost - min(gone, default=lost),
        killed=len(killed.written),
        lost_by_kill=len(lost_by_kill),
    )


def backed_up(stack: Stack) -> None:
    """The present history of the database has its backup."""
    wait_for("a backup", lambda: "there is" in str(keeper(stack, *LATEST)), 300, 1)
    keeper(stack, "backup")


def keeper(stack: Stack, *words: str) -> dict[str, Any]:
    """What the keeper answers, be it that it refuses."""
    command = ("docker", "exec", stack.one("backup")["Id"], *KEEPER, *words)
    said = stack.engine.run(*command, check=False, seconds=900)
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def throughput(stack: Stack) -> dict[bool, list[float]]:
    """Transactions per second of pgbench, with the backup service and without, in turns."""
    stack.execute("postgres", *PSQL, "CREATE DATABASE bench", "-d", "postgres")
    stack.execute("postgres", *PGBENCH, "-i", "-q", "-s", "10", "bench")
    backup = stack.one("backup")["Id"]
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * ROUNDS):
        running = number % 2 == 0
        stack.engine.run("docker", "start" if running else "stop", backup)
        time.sleep(5 if running else 0)  # until it receives again
        said = stack.execute("postgres", *PGBENCH, "-c", "4", "-T", str(SECONDS), "bench")
        rates[running].append(float(re.findall(r"tps = ([\d.]+)", said)[0]))
    stack.engine.run("docker", "start", backup)
    stack.execute("postgres", *PSQL, "DROP DATABASE bench", "-d", "postgres")
    return rates
