"""From a bare machine to a controller."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness import ROOT

if TYPE_CHECKING:
    from pathlib import Path

# What the script calls, so that a PATH of these alone hides the rest of the machine.
TOOLS = (
    *("bash", "cat", "cut", "dirname", "env", "flock", "grep"),
    *("mkdir", "rm", "sed", "sha256sum", "tail", "touch"),
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("scripts/bootstrap", "requirements.lock", "requirements-dev.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory for PATH with basic tools and no Python."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (directory / tool).symlink_to(found)
    return directory


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def bootstrap(
    clone: Path, *arguments: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if k not in {"PYTHON", "VIRTUAL_ENV"}}
    if path:
        variables["PATH"] = str(path)
    return subprocess.run(
        [clone / "scripts" / "bootstrap", *arguments],
        env=variables | environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


@pytest.mark.slow
def test_from_nothing_and_again(clone: Path) -> None:
    """CS-1: Python is all that is needed; the second time nothing happens, in no time."""
    first = bootstrap(clone, "run")
    assert first.returncode == 0, first.stderr
    assert "Creating .venv" in first.stderr
    ansible = subprocess.run(
        [clone / ".venv/bin/ansible", "--version"], capture_output=True, text=True, check=True
    )
    assert ansible.stdout.startswith("ansible [core 2.19.")

    began = time.monotonic()
    again = bootstrap(clone, "run")
    assert (again.returncode, again.stderr) == (0, "")
    assert time.monotonic() - began < 2

    # An installation that was cut short is made anew.
    (clone / ".venv/.unfinished").touch()
    (clone / ".venv/.run-is-installed").unlink()
    shutil.rmtree(clone / ".venv/lib")
    repaired = bootstrap(clone, "run")
    assert repaired.returncode == 0, repaired.stderr
    assert "Creating .venv" in repaired.stderr
    assert not (clone / ".venv/.unfinished").exists()
    assert bootstrap(clone, "run").stderr == ""


def test_no_python(clone: Path, bare: Path) -> None:
    """Bad input: a machine without a Python that will do."""
    done = bootstrap(clone, "run", path=bare)
    assert done.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13 found: install one, or name it with PYTHON=" in done.stderr
    program(bare / "python3", "exit 1")  # too old, or a version manager's stub
    assert "no Python 3.11" in bootstrap(clone, "run", path=bare).stderr
    assert not (clone / ".venv").exists()


def test_no_venv_module_and_no_apt(clone: Path, bare: Path) -> None:
    """Bad input: it says which package to install."""
    program(
        bare / "python3",
        'case "$*" in *"import ensurepip"*) exit 1;; *_base_executable*) '
        f'echo "$0"; exit;; esac; exec {sys.executable} "$@"',
    )
    done = bootstrap(clone, "run", path=bare)
    assert done.returncode == 1
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert "lacks the venv module: install it (Debian, Ubuntu: sudo apt-get" in done.stderr
    assert f"python{version}-venv)" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may install packages")
def test_no_venv_module_but_apt(clone: Path, bare: Path) -> None:
    """CS-1: a bare Debian machine lacks python3-venv; root has it installed."""
    program(
        bare / "python3",
        f'case "$*" in *"import ensurepip"*) test -e {bare}/installed; exit;; '
        f'*_base_executable*) echo "$0"; exit;; "-m venv"*) echo made by venv; exit 7;; esac; '
        f'exec {sys.executable} "$@"',
    )
    program(
        bare / "apt-get",
        f'echo "$@" >> {bare}/log; case "$1" in update) : > {bare}/updated;; '
        f"*) test -e {bare}/updated && : > {bare}/installed;; esac",
    )
    done = bootstrap(clone, "run", path=bare)
    assert "Installing python3." in done.stderr
    log = (bare / "log").read_text().splitlines()
    assert [line.split()[0] for line in log] == ["install", "update", "install"]
    assert "Creating .venv" in done.stderr


def test_no_browser_and_no_apt(clone: Path, bare: Path) -> None:
    """Bad input: it says which packages to install."""
    done = bootstrap(clone, "browser", path=bare)
    assert done.returncode == 1
    assert "sudo apt-get install chromium chromium-driver" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may install packages")
def test_no_browser_but_apt(clone: Path, bare: Path) -> None:
    """CS-1: root has it installed, once, while others wait for apt, or hears why it cannot be."""
    program(bare / "apt-get", "echo there is no such package; exit 100")
    done = bootstrap(clone, "browser", path=bare)
    assert done.returncode == 1
    assert "could not install chromium chromium-driver: there is no such package" in done.stderr
    program(
        bare / "apt-get",
        f'echo "$@" >> {bare}/log; case "$1" in update) : > {bare}/updated;; '
        f"*) test -e {bare}/updated && cp {bare}/apt-get {bare}/chromium"
        f" && cp {bare}/apt-get {bare}/chromedriver;; esac",
    )
    (bare / "cp").symlink_to(str(shutil.which("cp")))
    done = bootstrap(clone, "browser", path=bare)
    assert done.returncode == 0, done.stderr
    log = (bare / "log").read_text().splitlines()
    assert [line.split()[0] for line in log] == ["install", "update", "install"]
    assert all("DPkg::Lock::Timeout=300" in line for line in log)
    again = bootstrap(clone, "browser", path=bare)
    assert (again.returncode, again.stderr) == (0, "")


def test_wrong_usage_and_missing_lock(clone: Path) -> None:
    """Bad input."""
    assert "usage: scripts/bootstrap run|dev|app|browser" in bootstrap(clone, "everything").stderr
    done = bootstrap(clone, "app")
    assert done.returncode == 1
    assert "app/requirements.lock" in done.stderr
