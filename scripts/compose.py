#!/usr/bin/env python3
"""Run `docker compose` where the stack is: here, or over SSH with a terminal.

For what an operator watches or types into. What changes a host is a playbook.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Run in stack_dir. The serving slot is where the link points.
SHELLS = {
    "shell-app": 'exec docker compose exec "api-$(basename "$(readlink run/sockets/active)")" sh',
    "shell-db": "exec docker compose exec postgres psql -h /run/postgresql -U postgres app",
}
DOCKER_SOCKET = Path("/var/run/docker.sock")


def places(inventory: str) -> dict[str, dict[str, Any]]:
    """Where each host of the inventory keeps the stack, and how it is reached."""
    environment = os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    done = subprocess.run(  # noqa: S603
        [  # noqa: S607
            "ansible-playbook",
            "--inventory",
            inventory,
            str(ROOT / "playbooks" / "where.yml"),
        ],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    try:
        plays = json.loads(done.stdout)["plays"]
    except (ValueError, KeyError):
        plays = []
    if done.returncode != 0 or not plays:
        sys.exit(f"The inventory {inventory} cannot be used:\n{done.stdout}")
    found: dict[str, dict[str, Any]] = {}
    for play in plays:
        for task in play["tasks"]:
            for host, result in task["hosts"].items():
                if isinstance(result.get("msg"), dict):
                    found[host] = result["msg"]
    if not found:
        sys.exit(f"The inventory {inventory} has no host in the group `stack`.")
    return found


def command(place: dict[str, Any], words: list[str], *, terminal: bool) -> list[str]:
    """The command that runs these words of compose in the stack's directory."""
    script = SHELLS.get(words[0]) or "exec " + shlex.join(["docker", "compose", *words])
    if not terminal:
        script = script.replace("compose exec ", "compose exec --no-TTY ")
    directory = shlex.quote(place["directory"])
    missing = f"There is no stack in {place['directory']}: make up"
    script = (
        f"cd {directory} 2> /dev/null && [ -e compose.yml ] "
        f"|| {{ echo {shlex.quote(missing)} >&2; exit 1; }}; {script}"
    )
    if place["connection"] == "local":
        allowed = os.geteuid() == 0 or os.access(DOCKER_SOCKET, os.W_OK)
        return ([] if allowed else ["sudo"]) + ["sh", "-c", script]
    if place["connection"] not in ("ssh", "smart", "paramiko", "paramiko_ssh"):
        sys.exit(f"Over the connection `{place['connection']}` only playbooks run.")
    ssh = ["ssh", *(["-t"] if terminal else []), *shlex.split(place["options"])]
    for flag in ("user", "port", "key"):
        if place[flag] != "":
            ssh += [{"user": "-l", "port": "-p", "key": "-i"}[flag], str(place[flag])]
    # Root by whatever way there is: the directory of secrets is root's, and so is Docker.
    become = f'if [ "$(id -u)" = 0 ]; then sh -c {shlex.quote(script)}; '
    become += f"else exec sudo sh -c {shlex.quote(script)}; fi"
    return [*ssh, place["address"], become]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", required=True)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="shell-app, shell-db, or compose's")
    arguments = parser.parse_args()
    if not arguments.words:
        parser.error("nothing to do")
    found = places(arguments.inventory)
    chosen = os.environ.get("HOST")
    if chosen:
        if chosen not in found:
            sys.exit(f"HOST={chosen} is not in the inventory; there are: {', '.join(found)}")
        found = {chosen: found[chosen]}
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if len(found) == 1:
        argv = command(next(iter(found.values())), arguments.words, terminal=terminal)
        os.execvp(argv[0], argv)  # noqa: S606
    if arguments.words[0] != "ps":
        sys.exit(f"Several hosts: say which, HOST={' or HOST='.join(found)}")
    status = 0
    for host, place in found.items():
        print(f"{host}:", flush=True)
        argv = command(place, arguments.words, terminal=False)
        status |= subprocess.run(argv, check=False).returncode  # noqa: S603
    sys.exit(status)


if __name__ == "__main__":
    main()
