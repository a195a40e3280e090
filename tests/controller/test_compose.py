"""Looking at a stack, stopping it and removing it, wherever it runs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts import compose
from tests.harness import ROOT, Run, playbook

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = "compose-stack-verbs"
IMAGE = "compose-stack-verbs/empty:1"
HERE = {
    "ansible_connection": "local",
    "ansible_python_interpreter": sys.executable,
    "stack_project": PROJECT,
}


def place(**changes: Any) -> dict[str, Any]:
    return {
        "directory": "/opt/it's here",
        "connection": "local",
        "address": "web1",
        "user": "",
        "port": "",
        "key": "",
        "options": "",
        **changes,
    }


def test_commands_run_here_or_over_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """CS-13, FS-1: the same verb on a laptop and against a host."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    here = compose.command(place(), ["logs", "--since", "1 h"], terminal=True)
    assert here[:2] == ["sh", "-c"]
    assert "exec docker compose logs --since '1 h'" in here[2]
    remote = compose.command(
        place(connection="ssh", user="deploy", port=2222, key="/k", options="-o A=b"),
        ["shell-db"],
        terminal=True,
    )
    assert remote[:10] == ["ssh", "-t", "-o", "A=b", "-l", "deploy", "-p", "2222", "-i", "/k"]
    assert remote[10] == "web1"
    assert "sudo" in remote[11]
    piped = compose.command(place(), ["shell-app"], terminal=False)
    assert "compose exec --no-TTY" in piped[2]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(compose, "DOCKER_SOCKET", Path("/nonexistent"))
    assert compose.command(place(), ["ps"], terminal=True)[0] == "sudo"
    with pytest.raises(SystemExit, match="Over the connection `winrm` only playbooks run"):
        compose.command(place(connection="winrm"), ["ps"], terminal=True)


def test_a_shell_goes_to_the_serving_slot(tmp_path: Path) -> None:
    """CS-13: whichever colour serves."""
    (tmp_path / "compose.yml").touch()
    (tmp_path / "run/sockets").mkdir(parents=True)
    (tmp_path / "run/sockets/active").symlink_to("green")
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@"\n')
    docker.chmod(0o755)
    argv = compose.command(place(directory=str(tmp_path)), ["shell-app"], terminal=True)
    done = subprocess.run(
        argv[argv.index("sh") :],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "compose exec api-green sh\n"


def test_places_come_from_the_inventory(tmp_path: Path) -> None:
    """FS-1: directory and connection of every host, with the roles' defaults."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        "stack:\n"
        "  hosts:\n"
        "    a: {ansible_host: 192.0.2.1, ansible_port: 2222, stack_dir: /srv/a}\n"
        "    b: {ansible_connection: local}\n"
    )
    found = compose.places(str(inventory))
    assert found["a"] | {"options": ""} == place(
        directory="/srv/a", connection="ssh", address="192.0.2.1", port=2222
    )
    assert (found["b"]["directory"], found["b"]["connection"]) == ("/opt/compose-stack", "local")


def test_there_is_no_stack_yet() -> None:
    """Bad input: said plainly, with the remedy."""
    done = subprocess.run(
        compose.command(place(), ["ps"], terminal=False)[-3:],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "There is no stack in" in done.stderr
    assert "make up" in done.stderr


def docker(*arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=True, cwd=cwd
    )
    return done.stdout


def left() -> dict[str, list[str]]:
    label = f"label=com.docker.compose.project={PROJECT}"
    return {
        kind: docker(*command, "--filter", label, "--format", "{{.Name}}").split()
        for kind, command in {
            "containers": ["container", "ls", "--all"],
            "volumes": ["volume", "ls"],
            "networks": ["network", "ls"],
        }.items()
        if kind != "containers"
    } | {"containers": docker("ps", "-aq", "--filter", label).split()}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A project with a service in a profile and one that was dropped from the file since."""
    try:
        docker("version")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a reachable Docker Engine")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    subprocess.run(
        ["docker", "import", "-", IMAGE], input=archive.getvalue(), check=True, capture_output=True
    )
    stack = tmp_path / "deep" / "stack"
    stack.mkdir(parents=True)
    service = f"image: {IMAGE}, command: [none], volumes: ['some-data:/data']"
    (stack / "compose.yml").write_text(
        f"name: {PROJECT}\n"
        f"services:\n  a: {{{service}}}\n  b: {{{service}, profiles: [dev]}}\n"
        f"  gone: {{{service}}}\n"
        "volumes: {some-data: {}}\n"
    )
    docker("compose", "--profile", "dev", "create", cwd=stack)
    yield stack
    docker("compose", "--project-name", PROJECT, "down", "--volumes", cwd=Path("/"))
    docker("image", "rm", "--force", IMAGE)


def run(name: str, stack: Path, *options: str, **variables: Any) -> Run:
    return playbook(
        ROOT / "inventories" / "local",
        *options,
        name=name,
        variables={**HERE, "stack_dir": str(stack), **variables},
        seconds=120,
    )


@pytest.mark.docker
def test_down_keeps_data_and_clean_removes_it(project: Path) -> None:
    """CS-13, CS-15: both by the project's name, whatever profiles it was started with."""
    assert len(left()["containers"]) == 3
    assert run("down.yml", project).succeeded().changed == 1
    assert left() == {"containers": [], "networks": [], "volumes": [f"{PROJECT}_some-data"]}
    assert (project / "compose.yml").exists()
    assert run("down.yml", project).succeeded().changed == 0

    data = project.parent / "elsewhere" / "postgres"
    data.mkdir(parents=True)
    docker("compose", "create", cwd=project)
    refused = run("clean.yml", project)
    assert f"make clean CONFIRM={PROJECT}" in " ".join(refused.failed().output.split())
    wrong = run("clean.yml", project, clean_confirm="compose-stack")
    assert f"the project is called {PROJECT}" in " ".join(wrong.failed().output.split())
    run("clean.yml", project, "--check", clean_confirm=PROJECT).succeeded()
    assert len(left()["containers"]) == 2
    assert (project / "compose.yml").exists()

    settings = {"clean_confirm": PROJECT, "postgres_data_dir": str(data)}
    assert run("clean.yml", project, **settings).succeeded().changed == 2
    assert left() == {"containers": [], "networks": [], "volumes": []}
    assert not project.exists()
    assert not data.exists()
    assert run("clean.yml", project, **settings).succeeded().changed == 0


def test_clean_refuses_a_directory_that_cannot_be_the_stacks() -> None:
    """Bad input: a slip in stack_dir does not empty the machine."""
    for directory in (Path("/opt"), Path("/")):
        refused = run("clean.yml", directory, clean_confirm=PROJECT).failed()
        assert "must lie two levels below /" in " ".join(refused.output.split())
