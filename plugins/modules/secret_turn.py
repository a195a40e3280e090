#!/usr/bin/python
"""Ansible module: let servers know which versions of a secret they accept."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret_turn
short_description: Let servers know which versions of a secret they accept
version_added: "1.0.0"
author: compose-stack
description:
  - Works on the directory that M(secret_files) keeps. Of each secret of which there is an earlier
    version, the server that accepts it reads again what is there.
  - With O(retire), versions that no container of the project was made with are hidden first, and
    removed once the server has read that they are gone. Interrupted in between, the next execution
    goes on.
  - It never returns or shows a value.
options:
  path:
    description: The directory.
    type: path
    required: true
  names:
    description: Secrets that are in use.
    type: list
    elements: str
    required: true
  project_name:
    description: Name of the Compose project.
    type: str
    required: true
  label:
    description: The label by which a container tells the versions it was made with.
    type: str
    required: true
  servers:
    description:
      - By secret, the service that accepts it and the command that has it read again what is there.
        Without a command the service is one that ends, and is started again. A service without a
        container is passed over, because it reads when it starts.
    type: dict
    default: {}
  retire:
    description: Whether versions that nothing uses are taken away.
    type: bool
    default: false
attributes:
  check_mode:
    support: none
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Let the databases forget what nothing uses any more
  secret_turn:
    path: /opt/stack/secrets
    names: [redis_password]
    project_name: stack
    label: compose-stack.secrets
    servers:
      redis_password: {service: redis, command: [sh, /etc/redis/accept.sh]}
    retire: true
"""

RETURN = r"""
asked:
  description: Services that were told.
  type: list
  elements: str
  returned: success
retired:
  description: Secrets of which earlier versions were taken away.
  type: list
  elements: str
  returned: success
held:
  description: Secrets of which an earlier version is still in use.
  type: list
  elements: str
  returned: success
"""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.secret_store import RefusedError, SecretFiles, read

if TYPE_CHECKING:
    from ansible.module_utils.secret_store import Former

LABEL = "com.docker.compose."
SECONDS = 300


class Turn:
    """One execution."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.files = SecretFiles(Path(self.params["path"]), check_mode=False)

    def run(self) -> None:
        """Tell the servers; with `retire`, take away what nothing uses."""
        self.files.prepare()
        for name in self.params["names"]:
            if read(self.files.directory / name):
                self.files.ensure(name, None)
        hidden: list[Former] = []
        if self.params["retire"]:
            hidden = self.files.retire(self.in_use())
        former = self.files.former()
        gone = {item.path for item in hidden}
        told = hidden if self.params["retire"] else former
        asked, refused = self.tell({item.name for item in told})
        for item in hidden:
            if item.name not in refused:
                item.path.unlink()
        if refused:
            self.fail(
                "Not every server has been told which secrets it accepts: "
                + "; ".join(f"{name}: {why}" for name, why in sorted(refused.items()))
                + ". What ran runs on. Mend the cause and run the same command again."
            )
        self.module.exit_json(
            changed=bool(asked or hidden),
            asked=asked,
            retired=sorted({item.name for item in hidden}),
            held=sorted({item.name for item in former if item.path not in gone}),
        )

    def in_use(self) -> str:
        """What the project's containers were made with, running or not."""
        form = f'{{{{.Label "{self.params["label"]}"}}}}'
        done = self.docker("ps", "--all", *self.project(), "--format", form)
        if done.returncode:
            self.fail(f"Docker does not tell what is in use, and nothing was retired: {said(done)}")
        return done.stdout

    def tell(self, names: set[str]) -> tuple[list[str], dict[str, str]]:
        """Have the servers of these secrets read them again; who did, and why others did not."""
        refused: dict[str, str] = {}
        results: dict[str, str] = {}
        for name in sorted(names & self.params["servers"].keys()):
            server = self.params["servers"][name]
            key = f"{server['service']} {server.get('command', '')}"
            if key not in results:
                results[key] = self.tell_one(server["service"], server.get("command"))
            if results[key]:
                refused[name] = results[key]
        return sorted({key.partition(" ")[0] for key in results}), refused

    def tell_one(self, service: str, command: list[str] | None) -> str:
        """Why it failed; empty when it did not."""
        which = ("--all",) if command is None else ()
        label = f"--filter=label={LABEL}service={service}"
        kind = f"--filter=label={LABEL}oneoff=False"
        listed = self.docker("ps", "--quiet", *which, *self.project(), label, kind)
        for container in listed.stdout.split():
            done = (
                self.docker("start", "--attach", container)
                if command is None
                else self.docker("exec", container, *command)
            )
            if done.returncode:
                return said(done)
        return said(listed) if listed.returncode else ""

    def project(self) -> tuple[str, ...]:
        return (f"--filter=label={LABEL}project={self.params['project_name']}",)

    def docker(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["docker", *words]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"no answer within {SECONDS} s")

    def fail(self, message: str) -> NoReturn:
        self.module.fail_json(msg=message)
        raise AssertionError  # fail_json does not return


def said(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout + done.stderr).strip().splitlines()[-3:]
    return " ".join(lines) or f"exit code {done.returncode}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True, "no_log": False},
            "project_name": {"type": "str", "required": True},
            "label": {"type": "str", "required": True},
            "servers": {"type": "dict", "default": {}},
            "retire": {"type": "bool", "default": False},
        },
    )
    try:
        Turn(module).run()
    except (RefusedError, OSError) as error:
        module.fail_json(msg=f"Cannot keep secrets in {module.params['path']}: {error}.")


if __name__ == "__main__":
    main()
