"""What the static tests look at: the files of the repository, and what its rooms render to."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())
INVENTORIES = sorted(path.name for path in (ROOT / "inventories").iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def optional(path: Path) -> dict[str, Any]:
    return dict(load(path) or {}) if path.exists() else {}


def tracked() -> list[Path]:
    """Every file that is, or would become, part of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@dataclass(frozen=True)
class Rendered:
    """The compose project of one inventory."""

    inventory: str
    directory: Path
    services: dict[str, dict[str, Any]]
    room_of: dict[str, str]
    volumes: dict[str, Any]
    networks: dict[str, Any]

    def long_running(self) -> dict[str, dict[str, Any]]:
        return {name: item for name, item in self.services.items() if item["restart"] != "no"}

    def file(self, room: str, path: str) -> str:
        return (self.directory / room / "current" / path).read_text()


def render(inventory: str, directory: Path) -> Rendered:
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            f"inventories/{inventory}",
            "tests/contract/render.yml",
            "-e",
            f"contract_dir={directory}",
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    project = load(directory / "stack" / "current" / "compose.yml")
    services: dict[str, dict[str, Any]] = {}
    room_of: dict[str, str] = {}
    volumes: dict[str, Any] = {}
    for room in sorted(path.name for path in directory.iterdir() if path.name != "stack"):
        current = directory / room / "current"
        for fragment in _with_includes(current, "compose.yml"):
            for name, service in (fragment.get("services") or {}).items():
                assert name not in services, f"{name} is defined by {room} and {room_of[name]}"
                services[name] = service
                room_of[name] = room
            volumes.update(fragment.get("volumes") or {})
    return Rendered(inventory, directory, services, room_of, volumes, project["networks"])


def _with_includes(directory: Path, name: str) -> list[dict[str, Any]]:
    fragment = load(directory / name)
    return [
        fragment,
        *(item for path in fragment.get("include", []) for item in _with_includes(directory, path)),
    ]


@pytest.fixture(scope="session", params=["production", "dev"])
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    return render(request.param, tmp_path_factory.mktemp(request.param))
