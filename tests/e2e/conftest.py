"""A stack on this very machine, deployed by `inventories/test` and removed at the end.

Its own project, directory and ports keep it apart from any other stack on the machine. The tests
are two suites, which may run at once: E2E_SUITE=releases takes a project of its own as well.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.harness import ROOT, Engine, Run, Site, Stack, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE = os.environ.get("E2E_SUITE", "")


def _inventory() -> str:
    """`inventories/test`, or a copy of it whose stack has another name and other ports."""
    given = ROOT / "inventories" / "test"
    if not SUITE:
        return str(given)
    copy = ROOT / ".cache" / "inventories" / f"test-{SUITE}"
    shutil.copytree(given, copy, dirs_exist_ok=True)
    file = copy / "group_vars" / "stack.yml"
    text = file.read_text().replace("compose-stack-test", f"compose-stack-{SUITE}")
    file.write_text(re.sub(r"(?<=_port: )\d+", lambda port: str(int(port[0]) + 100), text))
    return str(copy)


INVENTORY = _inventory()
SETTINGS: dict[str, Any] = yaml.safe_load(Path(INVENTORY, "group_vars", "stack.yml").read_text())
PROJECT = str(SETTINGS["stack_project"])
DIRECTORY = str(SETTINGS["stack_dir"])
ENGINE = Engine()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        skip = pytest.mark.skip(reason="deploys to this machine: run as root")
        for item in items:
            if Path(item.path).parent == Path(__file__).parent:
                item.add_marker(skip)


def site_yml(*options: str, **variables: Any) -> Run:
    return playbook(INVENTORY, *options, variables=variables)


def clean() -> Run:
    return playbook(INVENTORY, name="clean.yml", variables={"clean_confirm": PROJECT})


@pytest.fixture(scope="session")
def deployed() -> Iterator[Run]:
    """The first deployment, from nothing."""
    build = playbook(INVENTORY, name="build.yml", seconds=600).succeeded()
    assert build.record["failed_tasks"] == []
    clean().succeeded()
    yield site_yml().succeeded()
    if os.environ.get("KEEP_STACK"):
        return
    clean().succeeded()


@pytest.fixture(scope="session")
def anything(deployed: Run) -> Stack:
    """The stack, in whatever state the tests before left it."""
    site = Site(
        "127.0.0.1",
        int(SETTINGS["nginx_https_port"]),
        int(SETTINGS["nginx_http_port"]),
        "localhost",
        Path(DIRECTORY, "tls", "live", "ca.pem"),
    )
    return Stack(ENGINE, PROJECT, DIRECTORY, site)


@pytest.fixture
def stack(anything: Stack) -> Stack:
    """The stack, healthy."""
    anything.wait_healthy()
    return anything
