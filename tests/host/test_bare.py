"""A machine with nothing on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conftest import site_yml

if TYPE_CHECKING:
    from tests.harness import Engine

pytestmark = pytest.mark.timeout(180, func_only=True)

# What logging in leaves behind, and Ansible's own scratch files.
OWN = r"/(root|home/deploy)/\.(ansible|cache)|/var/log/|/var/lib/systemd/|/var/lib/private|/run/"


def listing(engine: Engine) -> set[str]:
    """Every file with mode, owner, size and time of change."""
    found = engine.run(
        "find", "/", "-xdev", "-regextype", "posix-extended", "-not", "-regex", f"({OWN}).*",
        "-not", "-type", "d", "-printf", "%p %m %u:%g %s %T@\\n",
    )  # fmt: skip
    return set(found.splitlines())


def test_nothing_of_the_stack_is_there(engine: Engine) -> None:
    """CS-1: or the scenario would prove nothing."""
    assert not engine.succeeds("sh", "-c", "command -v docker || ls /var/lib/docker/overlay2")


def test_check_changes_nothing(engine: Engine) -> None:
    """CS-1: --check --diff tells the truth on an empty host, and leaves it as it was."""
    before = listing(engine)
    run = site_yml("--check", "--diff").succeeded()
    assert run.changed > 0
    for service in ("postgres", "redis", "api", "nginx"):
        assert f"  create {service}" in run.output
    assert "Docker Compose is not installed, so every service has to be created" in run.output
    assert listing(engine) ^ before == set()
