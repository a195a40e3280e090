"""A throw-away Ansible project that uses the repository's plugins against this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.harness import BIN, ROOT, ansible_environment

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Outcome:
    """A finished play: the result of each task, and what it cost."""

    returncode: int
    output: str
    tasks: list[dict[str, Any]]
    record: dict[str, Any]

    @property
    def last(self) -> dict[str, Any]:
        return self.tasks[-1]

    @property
    def executions(self) -> int:
        return len(self.record["executions"])


class Project:
    """A directory with a role `demo` and whatever a test puts there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.templates = root / "roles" / "demo" / "templates"
        self.dest = root / "target" / "demo"
        self.current = self.dest / "current"
        self.stage = root / "stage"
        self.templates.mkdir(parents=True)

    def template(self, name: str, content: str | bytes, mode: int = 0o644) -> Path:
        path = self.templates / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    def render(
        self, *options: str, variables: dict[str, Any] | None = None, **args: Any
    ) -> Outcome:
        """Run render_tree in the role."""
        tasks = self.root / "roles" / "demo" / "tasks"
        tasks.mkdir(exist_ok=True)
        task = {"name": "Render", "render_tree": {"dest": str(self.dest), **args}}
        (tasks / "main.yml").write_text(yaml.safe_dump([task]))
        return self._play({"roles": ["demo"], "vars": variables or {}}, options)

    def tasks(self, *tasks: dict[str, Any], options: tuple[str, ...] = ()) -> Outcome:
        """Run tasks outside any role."""
        return self._play({"tasks": list(tasks)}, options)

    def command(self, play: dict[str, Any], options: tuple[str, ...] = ()) -> list[str]:
        """The command line that runs a play."""
        whole = {"hosts": "localhost", "gather_facts": False, **play}
        (self.root / "play.yml").write_text(yaml.safe_dump([whole]))
        (self.root / "hosts.yml").write_text(
            yaml.safe_dump(
                {
                    "all": {
                        "hosts": {
                            "localhost": {
                                "ansible_connection": "local",
                                "ansible_python_interpreter": sys.executable,
                            }
                        }
                    }
                }
            )
        )
        return [str(BIN / "ansible-playbook"), "-i", "hosts.yml", "play.yml", *options]

    def environment(self, callback: str = "ansible.posix.json") -> dict[str, str]:
        """The repository's configuration, with results a test can read."""
        return {
            **ansible_environment(self.root / "record.jsonl"),
            "ANSIBLE_STDOUT_CALLBACK": callback,
            "ANSIBLE_ROLES_PATH": str(self.root / "roles"),
            "ANSIBLE_LOCALHOST_WARNING": "False",
        }

    def _play(self, play: dict[str, Any], options: tuple[str, ...]) -> Outcome:
        done = subprocess.run(
            self.command(play, options),
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        output = done.stdout + done.stderr
        assert "{" in done.stdout, output
        document = json.loads(done.stdout[done.stdout.index("{") :])
        results = [task["hosts"]["localhost"] for task in document["plays"][0]["tasks"]]
        record = json.loads((self.root / "record.jsonl").read_text().splitlines()[-1])
        return Outcome(done.returncode, output, results, record)


def run_module(module: str, arguments: dict[str, Any], *options: str) -> dict[str, Any]:
    """What a module answers when it is run by Ansible on this machine."""
    finished = subprocess.run(
        [
            *(str(BIN / "ansible"), "-i", "localhost,", "-c", "local", "-m", module),
            *("-a", json.dumps(arguments)),
            *("-e", f"ansible_python_interpreter={sys.executable}", *options, "localhost"),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.stdout, finished.stderr
    play = json.loads(finished.stdout)["plays"][0]
    answer: dict[str, Any] = play["tasks"][0]["hosts"]["localhost"]
    return answer


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)
