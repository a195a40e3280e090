"""What the static tests look at: the files of the repository, and what its rooms render to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())
INVENTORIES = sorted(path.name for path in (ROOT / "inventories").iterdir() if path.is_dir())

# All of them, so that every service is looked at.
PROFILES = ["dev", "monitoring", "logging"]
RENDERED = ["production", "dev"]
# What an inventory leaves open, and without which a room is not there: where messages and copies
# go, and who gives certificates.
AUTHORITY = {
    "tls_mode": "acme",
    "acme_challenge": "dns-01",
    "acme_dns_provider": "cloudflare",
    "acme_dns_secrets": ["CF_DNS_API_TOKEN"],
}
OPEN = {
    "production": {
        "birthdays_email_url": "https://email.example.com/messages",
        "offsite_repository": "sftp:copies@nas.example.com:/srv/copies",
        "offsite_known_hosts": "nas.example.com ssh-ed25519 AAAA",
        **AUTHORITY,
    },
    "dev": {"offsite_repository": "/opt/compose-stack-copies/dev", **AUTHORITY},
}
# Rendered once more with settings that are not the defaults, as name: inventory and variables.
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "changed": (
        "production",
        {
            "stack_server_names": ["example.com", "*.example.com"],
            "stack_frontend_subnet": "172.30.1.0/24",
            "stack_backend_subnet": "172.30.2.0/24",
            "stack_monitoring_subnet": "172.30.3.0/24",
            "nginx_cpus": 2.5,
            "postgres_max_connections": 500,
            "tls_mode": "selfsigned",
            "tls_ocsp_responder": "http://ocsp.example.com",
            "nginx_https_port": 8443,
            "grafana_anonymous": True,
            "loki_retention_hours": 24,
            "secrets_values": {"birthdays_email_token": "not-a-secret"},
        },
    ),
    "without": (
        "production",
        {"images_left_out": {"grafana": "no archive", "loki": "no archive", "alloy": "no use"}},
    ),
}
SCRATCH = tempfile.TemporaryDirectory(prefix="contract-")


class Loader(yaml.SafeLoader):
    """YAML with the tags that Ansible adds."""


class Literal(str):
    """Text in which braces mean nothing to Ansible."""

    __slots__ = ()


for _tag in ("!unsafe", "!vault"):
    Loader.add_constructor(_tag, lambda _, node: Literal(node.value))


def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader)


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


def run_render(name: str) -> subprocess.CompletedProcess[str]:
    inventory, variables = CHANGED.get(name, (name, {}))
    return subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            f"inventories/{inventory}",
            "tests/contract/render.yml",
            "-e",
            json.dumps(
                {
                    "stack_profiles": PROFILES,
                    **OPEN.get(inventory, {}),
                    **variables,
                    "contract_dir": f"{SCRATCH.name}/{name}",
                }
            ),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@cache
def render_all() -> dict[str, subprocess.CompletedProcess[str]]:
    """Side by side, and once, failed or not: pytest would try again for every test."""
    with ThreadPoolExecutor() as pool:
        names = [*RENDERED, *CHANGED]
        return dict(zip(names, pool.map(run_render, names), strict=True))


def render(inventory: str) -> Rendered:
    done = render_all()[inventory]
    assert done.returncode == 0, done.stdout + done.stderr
    directory = Path(SCRATCH.name, inventory)
    project = load(directory / "stack" / "current" / "compose.yml")
    services: dict[str, dict[str, Any]] = {}
    room_of: dict[str, str] = {}
    volumes: dict[str, Any] = {}
    rooms = {path.name for path in directory.iterdir() if path.is_dir()} - {"stack"}
    for room in sorted(rooms):
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


@pytest.fixture(scope="session")
def changed() -> Rendered:
    return render("changed")


@pytest.fixture(scope="session")
def without() -> Rendered:
    return render("without")


@pytest.fixture(scope="session", params=RENDERED)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render(request.param)
