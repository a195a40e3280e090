"""CONTRIBUTING's example of a new room, followed to the letter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.harness import ROOT, Run, playbook, wait_for

from .conftest import INVENTORY, site_yml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Stack

pytestmark = pytest.mark.timeout(240, func_only=True)

BEFORE = "        - name: Stack\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the repository with what the chapter says to write."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    chapter = text.partition("\n## Add a service room\n")[2].partition("\n## ")[0]
    steps = re.findall(
        r"^\d+\. `([^`]+)`[^\n]*\n\n   ```\w*\n(.*?)^   ```$", chapter, re.DOTALL | re.MULTILINE
    )
    for name, block in steps:
        path = tmp_path / name
        content = textwrap.dedent(block)
        if name == "playbooks/site.yml":
            site = path.read_text()
            assert site.count(BEFORE) == 1
            content = site.replace(BEFORE, textwrap.indent(content, "        ") + "\n" + BEFORE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert len(steps) == 7
    return tmp_path


def deploy(repository: Path, **variables: object) -> Run:
    return playbook(
        INVENTORY,
        name=os.path.relpath(repository / "playbooks" / "site.yml", ROOT / "playbooks"),
        variables={
            "stack_services": [
                "postgres",
                "redis",
                "rabbitmq",
                "api",
                "usage",
                "birthdays",
                "backup",
                "nginx",
                "hello",
            ],
            **variables,
        },
        environment={"ANSIBLE_CONFIG": str(repository / "ansible.cfg")},
    ).succeeded()


def test_a_new_room(stack: Stack, repository: Path) -> None:
    """CS-14: it runs, reloads in place, and goes when it is taken out; the others stay."""
    core = ["postgres", "redis", "rabbitmq", "api", "usage", "birthdays", "backup", "nginx"]
    site_yml().succeeded()
    before = stack.lives(running=True)
    said = ("wget", "-q", "-O", "-", "http://127.0.0.1:8080/")

    deploy(repository)
    assert stack.execute("hello", *said) == "hello\n"
    running = stack.lives(running=True)
    assert running.items() > before.items()

    deploy(repository, hello_text="good evening")
    # The signal is sent; the new workers answer a moment later.
    wait_for("the new text", lambda: stack.execute("hello", *said) == "good evening\n", 10)
    assert stack.lives(running=True) == running

    deploy(repository, stack_services=core)
    assert stack.lives(running=True) == before


ROOM_THAT_SIGNS_IN = """\
{% from 'service.j2' import hardened, healthcheck with context %}
services:
  hello:
    image: {{ images_refs.postgres }}
    entrypoint: []
    command: [sleep, infinity]
    networks: [backend]
    {{ healthcheck(['CMD', 'psql', '-h', 'postgres', '-U', 'exporter_' ~ secrets_versions.postgres_exporter_password, '-d', 'postgres', '-c', 'SELECT 1']) | indent(4) }}
    {{ hardened('70:70', 0.5, 64, 32, stop_seconds=5) | indent(4) }}
"""  # noqa: E501


def test_who_may_sign_in_is_known_before_it_is_tried(stack: Stack, repository: Path) -> None:
    """CS-14: a room that PostgreSQL must let in comes in the same run as the line that does so."""
    before = stack.one("postgres")["Id"]
    (repository / "roles/hello/templates/compose.yml.j2").write_text(ROOM_THAT_SIGNS_IN)
    with (repository / "roles/postgres/templates/config/pg_hba.conf").open("a") as file:
        file.write("host postgres +exporter samenet trust\n")
    deploy(repository, stack_up_timeout_seconds=30)
    assert stack.healthy()
    assert stack.one("postgres")["Id"] == before
    site_yml().succeeded()


def test_back_to_before_a_secret(stack: Stack, repository: Path) -> None:
    """BM-10: a release from before the API had some secret comes back, and so does such a tree."""
    slot = stack.api_slot()
    with (repository / "roles/hello/vars/main.yml").open("a") as file:
        file.write("_hello_secrets: [hello_password]\n")
    variables = repository / "roles/api/vars/main.yml"
    more = variables.read_text().replace("operator_password]", "operator_password, hello_password]")
    variables.write_text(more)
    deploy(repository)
    assert stack.api_slot() != slot
    assert stack.execute(stack.api_slot(), "ls", "/run/secrets/hello_password")
    playbook(INVENTORY, name="rollback.yml").succeeded()
    assert stack.api_slot() == slot
    assert stack.healthy()
