"""A stack of its own whose database is backed up, lost and brought back."""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench.__main__ import Bench
from tests.harness import Engine, Run, Stack, playbook, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INVENTORY = "inventories/test"
BENCH = Bench("compose-stack-backups", "/opt/compose-stack-backups", 19080, 19443)
KEEPER = ("python3", "/etc/compose-stack/current/bin/keeper.py")
PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "app", "-AtqX", "-c")
ENGINE = Engine()
# What the database does not need.
SERVICES = ["postgres", "redis", "rabbitmq", "api", "backup", "nginx"]


@dataclass
class World:
    """The stack, and the hands that lose and restore."""

    stack: Stack

    @property
    def data(self) -> Path:
        return BENCH.data / "postgres"

    @property
    def archive(self) -> Path:
        return BENCH.data / "backup" / "main"

    def run(self, name: str, *options: str, **variables: Any) -> Run:
        return playbook(
            INVENTORY,
            *options,
            name=name,
            variables={**BENCH.variables, "stack_services": SERVICES, **variables},
            seconds=600,
        )

    def restore(self, *options: str, **variables: Any) -> Run:
        given = {"restore_confirm": BENCH.project, **variables}
        return self.run("restore.yml", *options, **given)

    def keeper(self, *words: str) -> dict[str, Any]:
        """What the keeper answers."""
        found: dict[str, Any] = json.loads(self.stack.execute("backup", *KEEPER, *words))
        return found

    def backups(self) -> list[dict[str, Any]]:
        run = self.stack.compose("run", "--rm", "--no-deps", "-T", "restore", *KEEPER, "list")
        (line,) = [line for line in run.splitlines() if line.startswith("{")]
        return [item for item in json.loads(line)["backups"] if item["good"]]

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
        wait_for("a backup", lambda: self.keeper("plan", "--until", "latest"), 120, 1)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    playbook(INVENTORY, name="build.yml", seconds=600).succeeded()
    BENCH.clean()
    BENCH.run(stack_services=SERVICES)
    world = World(BENCH.stack)
    yield world
    BENCH.clean()


def said(run: Run) -> str:
    """What a run printed, as one line: Ansible wraps it."""
    return re.sub(r"\s+", " ", run.output)
