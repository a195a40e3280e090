"""secret_turn: servers accept what is there, and what nothing uses goes when they know."""

from __future__ import annotations

import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from plugins.module_utils.secret_store import SecretFiles
from tests.plugins.test_compose_plan import small_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.plugins.conftest import Outcome, Project

PROJECT = f"secretturn{uuid.uuid4().hex[:8]}"
SEE = ["sh", "-c", "cd /accepted; for v in *; do echo $v; done > /seen/now"]


def docker(*words: str) -> None:
    subprocess.run(["docker", *words], capture_output=True, timeout=60, check=True)


@pytest.fixture
def store(project: Project) -> SecretFiles:
    """A secret of which there are two versions."""
    found = SecretFiles(project.root / "secrets", check_mode=False)
    found.prepare()
    found.ensure("password", "the-former-value")
    found.ensure("password", None, rotate=True)
    return found


@pytest.fixture
def start(project: Project, store: SecretFiles) -> Iterator[Callable[..., None]]:
    """Start a container of a service, that was made with some version."""
    small_image(f"{PROJECT}:1", "turn")
    (project.root / "seen").mkdir()
    shelf = store.directory / ".versions" / "password"

    def run(service: str, version: str = "") -> None:
        labels = {"project": PROJECT, "service": service, "oneoff": False}
        docker(
            "run", "--detach", "--network=none", f"--name={PROJECT}-{service}", "--stop-timeout=0",
            *(f"--label=com.docker.compose.{key}={value}" for key, value in labels.items()),
            f"--label=versions=one {version}",
            f"--volume={shelf}:/accepted:ro", f"--volume={project.root}/seen:/seen",
            f"{PROJECT}:1", "sleep", "600",
        )  # fmt: skip

    yield run
    for service in ("server", "client"):
        command = ["docker", "rm", "--force", f"{PROJECT}-{service}"]
        subprocess.run(command, capture_output=True, timeout=60, check=False)
    docker("image", "rm", f"{PROJECT}:1")


def test_accepted_beside_each_other_then_the_present_alone(
    project: Project, store: SecretFiles, start: Callable[..., None]
) -> None:
    """FS-8: whatever interrupts it, nothing that runs is refused, and nothing is left accepted."""
    (former,) = store.former()
    present = store.versions["password"]

    def turn(command: list[str] = SEE, **given: Any) -> Outcome:
        servers = {"password": {"service": "server", "command": command}}
        outcome = project.tasks(
            {
                "secret_turn": {
                    "path": str(store.directory), "names": ["password", "of_nobody"],
                    "project_name": PROJECT, "label": "versions", "servers": servers, **given,
                }
            }
        )  # fmt: skip
        assert "the-former-value" not in outcome.output
        return outcome

    def seen() -> set[str]:
        return set((project.root / "seen" / "now").read_text().split())

    assert turn().last["asked"] == ["server"]  # which will read it when it starts
    start("server")
    start("client", former.version)
    assert turn().last["asked"] == ["server"]
    assert seen() == {former.version, present}

    held = turn(retire=True).last
    assert (held["changed"], held["held"], held["retired"]) == (False, ["password"], [])
    assert former.path.exists()

    docker("rm", "--force", f"{PROJECT}-client")
    failed = turn(["sh", "-c", "echo no memory; exit 3"], retire=True)
    assert "password: no memory. What ran runs on" in failed.last["msg"]
    assert [item.version for item in store.former()] == [f".{former.version}"]
    # Where they lay before servers were to accept more than one.
    (store.directory / ".versions" / f"password.{former.version}").write_text("the-former-value")
    done = turn(retire=True).last
    assert (done["changed"], done["retired"], done["held"]) == (True, ["password"], [])
    assert seen() == {present}
    assert store.former() == []
    assert turn(retire=True).last["changed"] is False
