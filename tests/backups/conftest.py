"""A stack of its own whose database is backed up, lost and brought back."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench.__main__ import Bench
from tests.disk import Disk
from tests.harness import Engine, Run, Stack, playbook, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INVENTORY = "inventories/test"
BENCH = Bench("compose-stack-backups", "/opt/compose-stack-backups", 19080, 19443)
KEEPER = ("python3", "/etc/compose-stack/current/bin/keeper.py")
PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "app", "-AtqX", "-c")
ENGINE = Engine()
# Without what the database does not need.
SERVICES = ["postgres", "redis", "rabbitmq", "api", "backup", "nginx"]

# On the disk: what a container writes into memory counts as its own, and a restore writes a lot.
DATA = BENCH.backups.parent / "postgres"
# Of a file system of its own, which can be filled.
DRILL = BENCH.backups.parent / "disk" / "drill"
SETTINGS = {
    **BENCH.variables, "stack_services": SERVICES, "postgres_data_dir": str(DATA),
    "backup_drill_dir": str(DRILL),
}  # fmt: skip

# What can be wrong, and the cause that a drill of the archive must give for it. Of what is copied
# elsewhere test_offsite.py has more.
DAMAGE = {
    "a flipped bit": "(a page|a table or an index) is damaged",
    "a truncated dump": r"Dump [0-9TZ]+ is damaged and was removed: app\.dump\.",
    # The drill before has removed the only dump, so that another is due.
    "a dump that cannot be restored": r"cannot be dumped and restored: .*check constraint",
}


@dataclass
class World:
    """The stack, and the hands that lose and restore."""

    stack: Stack

    @property
    def data(self) -> Path:
        return DATA

    @property
    def archive(self) -> Path:
        return BENCH.backups / "main"

    def run(self, name: str, *options: str, **variables: Any) -> Run:
        return playbook(
            INVENTORY, *options, name=name, variables={**SETTINGS, **variables}, seconds=600
        )

    def restore(self, *options: str, **variables: Any) -> Run:
        given = {"restore_confirm": BENCH.project, **variables}
        return self.run("restore.yml", *options, **given)

    def keeper(self, *words: str) -> dict[str, Any]:
        """What the keeper answers, be it that it refuses."""
        said = self.stack.execute("backup", *KEEPER, *words, check=False)
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found

    def report(self, script: str, *words: str) -> list[str]:
        """Lines that a Python program prints in the backup container."""
        done = subprocess.run(
            ["docker", "exec", "-i", self.stack.one("backup")["Id"], "python3", "-", *words],
            input=script, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def backups(self) -> list[dict[str, Any]]:
        run = self.stack.compose("run", "--rm", "--no-deps", "-T", "restore", *KEEPER, "list")
        (line,) = [line for line in run.splitlines() if line.startswith("{")]
        return [item for item in json.loads(line)["backups"] if item["good"]]

    def metrics(self) -> dict[str, float]:
        """What the backup service says to Prometheus."""
        fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9120/metrics').read().decode())"
        lines = self.stack.execute("backup", "python3", "-c", fetch).splitlines()
        return {
            name: float(value)
            for name, _, value in (line.partition(" ") for line in lines)
            if value and not name.startswith("#")
        }

    @contextlib.contextmanager
    def while_there(self, made: str, gone: str) -> Iterator[None]:
        """While something is in the database: no drill goes back to before, or back to it later."""
        markers = ("-d", "postgres", "-c", "DELETE FROM drill.markers")
        self.psql(made)
        self.stack.execute("postgres", *PSQL[:-1], *markers)
        try:
            yield
        finally:
            self.psql(gone)
            self.stack.execute("postgres", *PSQL[:-1], *markers)

    @contextlib.contextmanager
    def damaged(self, how: str) -> Iterator[None]:
        """While the archive, or the drill's disk, is not as it should be."""
        if how == "a full disk":
            fill = DRILL.with_name("fill")
            size = shutil.disk_usage(DRILL).free - (40 << 20)
            try:
                ENGINE.run("fallocate", "--length", str(size), str(fill))
                yield
            finally:
                fill.unlink()
            return
        if how == "a dump that cannot be restored":
            check = "CREATE TABLE here (id int CHECK (current_database() = 'app'))"
            with self.while_there(f"{check}; INSERT INTO here VALUES (1)", "DROP TABLE here"):
                yield
            return
        if how == "a truncated dump":
            (*_, path) = sorted((BENCH.backups / "dumps").glob("*/app.dump"))
        elif how == "missing WAL":
            timeline = self.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")[:8]
            (*_, path) = sorted((self.archive / "wals").glob(f"{timeline}*/{timeline}*"))
        else:
            # Of the newest full backup, and changed by nobody since.
            full = [item["id"] for item in self.backups() if item["full"]][-1]
            table = "alembic_version" if how == "an empty file" else "pg_proc"
            relation = self.psql(f"SELECT pg_relation_filepath('{table}')")
            path = self.archive / "base" / full / "data" / relation
        content, owner = path.read_bytes(), path.stat()
        try:
            if how == "missing WAL":
                path.unlink()
            elif how == "an empty file":
                path.write_bytes(b"")
            elif how == "a truncated dump":
                path.write_bytes(content[: len(content) // 2])
            else:
                path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
            yield
        finally:
            # A dump that is damaged was removed.
            if path.parent.exists():
                path.write_bytes(content)
                os.chown(path, owner.st_uid, owner.st_gid)

    def psql(self, statement: str) -> str:
        return self.stack.execute("postgres", *PSQL, statement).strip()

    def create(self) -> str:
        """Create an item through the public address; its name."""
        name = uuid.uuid4().hex
        answer = self.stack.site.patiently(
            "POST", "/api/items", json={"name": name, "price_cents": 1}
        )
        assert answer.status_code == 201, answer.text
        return name

    def names(self) -> set[str]:
        return set(self.psql("SELECT name FROM items").splitlines())

    def now(self) -> str:
        """A moment between two commits, as the database's host sees it."""
        return dt.datetime.now(dt.UTC).isoformat()

    def aside(self) -> list[str]:
        return sorted(path.name for path in self.data.glob("pgdata.before-*"))

    def settle(self) -> None:
        """The stack is healthy, and the present history of the database has its backup."""
        self.stack.wait_healthy()
        wait_for(
            "a backup", lambda: "there is" in str(self.keeper("plan", "--until", "latest")), 120
        )


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    world = World(BENCH.stack)
    world.run("build.yml").succeeded()
    clean(world)
    DATA.parent.mkdir()
    Disk(DATA.parent, 1 << 30)
    try:
        world.run("site.yml").succeeded()
        yield world
    finally:
        clean(world)


def clean(world: World) -> None:
    world.run("clean.yml", clean_confirm=BENCH.project).succeeded()
    if DRILL.parent.is_mount():
        ENGINE.run("umount", "--lazy", str(DRILL.parent))
    for path in (BENCH.data, DATA.parent):
        shutil.rmtree(path, ignore_errors=True)


def said(run: Run) -> str:
    """What a run printed, as one line: Ansible wraps it."""
    return re.sub(r"\s+", " ", run.output)
