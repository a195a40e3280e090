"""The verbs, and the scripts behind them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.harness import ROOT

if TYPE_CHECKING:
    from pathlib import Path

# CS-13, and those that the issue and the architecture add.
VERBS = {
    *("up", "up-all", "check", "down", "clean", "dev"),
    *("ps", "logs", "shell-app", "shell-db", "certs"),
    *("build", "bundle", "test", "lint", "bench"),
}


def make(*arguments: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_make_alone_lists_the_verbs() -> None:
    """CS-13: grouped, each with a line that says what it does."""
    done = make()
    assert done.returncode == 0
    listed = re.findall(r"^  ([a-z-]+) +(\S.*)$", done.stdout, re.MULTILINE)
    assert {verb for verb, _ in listed} >= VERBS
    assert re.findall(r"^[A-Z]\w+$", done.stdout, re.MULTILINE)[:3] == ["Deploy", "Data", "Look"]


def test_every_target_is_phony_and_each_test_target_runs() -> None:
    """CS-13: a file that happens to be called like a verb stops nobody."""
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", text, re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: (\S+)", text, re.MULTILINE))
    assert targets == phony
    found = re.search(r"^TESTS := (.*)$", text, re.MULTILINE)
    assert found
    assert {f"test-{name}" for name in found.group(1).split()} == {
        target for target in targets if target.startswith("test-")
    }


def test_every_verb_has_its_playbook() -> None:
    """CS-13."""
    named = re.findall(r"playbooks/(\S+\.yml)", (ROOT / "Makefile").read_text())
    assert named
    assert [name for name in named if not (ROOT / "playbooks" / name).exists()] == []


def test_an_unknown_inventory_is_named() -> None:
    """Bad input: a typo in the inventory's name deploys nothing and says what there is."""
    done = make("up", "INVENTORY=prodction")
    assert done.returncode != 0
    assert "no inventory `prodction`; there are: dev local production staging test" in done.stderr


def test_a_misspelt_group_is_no_success(tmp_path: Path) -> None:
    """Bad input: an inventory without the group `stack` deploys nothing, and says so."""
    (tmp_path / "hosts.yml").write_text("stak: {hosts: {web1: {ansible_connection: local}}}\n")
    done = make("ps", f"INVENTORY={tmp_path}")
    assert done.returncode != 0
    done = make("down", f"INVENTORY={tmp_path}", "ARGS=--check")
    assert done.returncode != 0
    assert "Could not match supplied host pattern, ignoring: stack" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("inventory", "profiles"),
    [("dev", ["dev", "monitoring", "logging"]), ("local", ["monitoring", "logging"])],
)
def test_up_all_adds_to_the_profiles_of_the_inventory(
    inventory: str, profiles: list[str], tmp_path: Path
) -> None:
    """CS-13: what the inventory turns on stays on."""
    command = make("-n", "up-all", f"INVENTORY={inventory}").stdout.splitlines()[-1]
    (play,) = yaml.safe_load((ROOT / "playbooks" / "site.yml").read_text())
    shown = tmp_path / "shown"
    play.update(
        become=False,
        roles=[{"role": "stack", "tags": "never"}],
        tasks=[
            play["tasks"][0],
            {
                "ansible.builtin.copy": {"content": "{{ stack_profiles }}", "dest": str(shown)},
                "when": "stack_profiles is defined",
            },
        ],
    )
    (tmp_path / "site.yml").write_text(yaml.safe_dump([play]))
    subprocess.run(
        command.replace("playbooks/site.yml", str(tmp_path / "site.yml")),
        shell=True,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        timeout=180,
    )
    assert json.loads(shown.read_text().replace("'", '"')) == profiles


def test_continuous_integration_runs_the_two_commands() -> None:
    """CS-1, BM-13."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make up", "make test"]
    assert "set -euo pipefail" in lines


def test_all_test_targets_run_and_the_worst_decides(tmp_path: Path) -> None:
    """A failing target does not hide the others, and the exit code tells."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "run-tests", tmp_path / "scripts")
    (tmp_path / "Makefile").write_text(
        "test-a:\n\t@echo A\ntest-b:\n\t@false\ntest-c:\n\t@echo C\n"
    )
    runner = tmp_path / "scripts" / "run-tests"
    done = subprocess.run([runner, "a", "b", "c"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "\nA\n" in done.stdout
    assert done.stdout.index("===== summary") > done.stdout.index("===== b: FAILED")
    assert "\nC\n" in done.stdout
    assert re.search(r"^b +\d+ s  FAILED", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("\n2 passed, 1 failed\n")
    good = subprocess.run([runner, "a", "c"], capture_output=True, text=True, check=False)
    assert good.returncode == 0
    assert good.stdout.endswith("\n2 passed, 0 failed\n")


def test_interrupted_tests_stop(tmp_path: Path) -> None:
    """Ctrl-C ends the sequence, not only the target that is running."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "run-tests", tmp_path / "scripts")
    (tmp_path / "Makefile").write_text("test-a:\n\t@sleep 30\ntest-b:\n\t@echo reached b\n")
    with subprocess.Popen(
        [tmp_path / "scripts" / "run-tests", "a", "b"],
        env={**os.environ, "JOBS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        time.sleep(1)
        # A terminal signals the whole foreground group.
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=15)[0]
        assert process.returncode == 130
        assert "reached b" not in output


@pytest.mark.parametrize("script", ["bootstrap", "lint", "lock", "run-tests", "compose.py"])
def test_scripts_can_be_run(script: str) -> None:
    """CS-13."""
    assert (ROOT / "scripts" / script).stat().st_mode & 0o111
