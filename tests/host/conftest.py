"""The container host that the molecule scenario made: reached from inside and from outside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import ROOT, Engine, Run, Site, Stack, playbook

NAME = "compose-stack-molecule"
SCRATCH = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "/nonexistent"))
LOST = SCRATCH / "lost.json"
KEEPER = ("python3", "/etc/compose-stack/current/bin/keeper.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (SCRATCH / "instance_config.yml").exists():
        skip = pytest.mark.skip(reason="runs within `molecule test`")
        for item in items:
            if Path(item.path).parent == Path(__file__).parent:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(("docker", "exec", NAME))


@pytest.fixture(scope="session")
def address() -> str:
    (instance,) = yaml.safe_load((SCRATCH / "instance_config.yml").read_text())
    return str(instance["address"])


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    path = ROOT / "inventories" / "production" / "group_vars" / "stack.yml"
    return dict(yaml.safe_load(path.read_text()))


@pytest.fixture(scope="session")
def stack(
    engine: Engine,
    address: str,
    settings: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Stack:
    ca = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.write_text(engine.run("cat", "/opt/compose-stack/tls/live/ca.pem"))
    site = Site(address, 443, 80, settings["stack_server_names"][0], ca)
    return Stack(engine, "compose-stack", "/opt/compose-stack", site)


@pytest.fixture(scope="session")
def runs() -> list[dict[str, Any]]:
    """What molecule itself ran, oldest first."""
    return [json.loads(line) for line in (SCRATCH / "runs.jsonl").read_text().splitlines()]


def site_yml(*options: str, **variables: Any) -> Run:
    return playbook(SCRATCH / "inventory", *options, variables=variables)
