"""Ansible action plugin: say who takes a lock, and tell a run that goes on from one that ended."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import time
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc, unused-ignore]
    """Runs the module of the same name, a second time to take the lock of a run that has ended."""

    _supports_check_mode = True
    _requires_connection = True
    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        owner = whoami()
        arguments = {**self._task.args, "owner": owner}
        answer = self._execute(arguments, task_vars)
        other = answer.get("owner") or {}
        if answer.get("held") is False and has_ended(other, owner):
            answer = self._execute({**arguments, "ended": other["token"]}, task_vars)
            other = answer.get("owner") or {}
        result.update(answer)
        if answer.get("held") is False:
            result.update(failed=True, msg=refusal(other))
        elif answer.get("failed") and not answer.get("refused"):
            result = {"changed": False, "held": False}
        return result

    def _execute(
        self, arguments: dict[str, Any], task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._execute_module(
                module_name="run_lock", module_args=arguments, task_vars=task_vars
            )
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as error:
            return {"failed": True, "msg": str(error)}
        return answer


def whoami() -> dict[str, Any]:
    """Who runs this: the user, the controller, and the process that is this run of Ansible."""
    process = os.getppid()
    controller = f"{socket.gethostname()} {machine()}"
    started = start_of(process)
    playbooks = context.CLIARGS.get("args") or ()
    return {
        "who": f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}",
        "what": ", ".join(Path(name).name for name in playbooks) or "ansible",
        "controller": controller,
        "process": process,
        "started": started,
        "token": f"{controller} {process} {started}",
    }


def machine() -> str:
    """What tells controllers of one name apart: the machine, and whose processes one sees there."""
    known = ""
    with contextlib.suppress(OSError):
        known = Path("/etc/machine-id").read_text(encoding="utf-8").strip()
    with contextlib.suppress(OSError):
        known += f" {Path('/proc/self/ns/pid').readlink()}"
    return known


def start_of(process: int) -> str:
    """When a process was started, in the kernel's own count; empty when it cannot be told."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f"{boot} {after_name.split()[19]}"


def has_ended(other: dict[str, Any], owner: dict[str, Any]) -> bool:
    """Whether the run that has the lock was one of this controller's, and is over."""
    if not owner["started"] or other.get("controller") != owner["controller"]:
        return False
    try:
        os.kill(other["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's
    started = start_of(other["process"])
    return bool(started and started != other["started"])


def refusal(other: dict[str, Any]) -> str:
    """Who has the lock, since when, and what to do."""
    minutes = (time.time() - other["since"]) / 60
    ago = f"{minutes:.0f} minutes ago" if minutes >= 1.5 else "just now"
    since, expires = (
        time.strftime("%H:%M:%S", time.localtime(other[name])) for name in ("since", "expires")
    )
    return (
        f"Another run is changing this stack: {other['what']} by {other['who']}, since {since} "
        f"({ago}). Nothing was changed.\n"
        f"Remedy: wait until it is done. If it was killed, `make unlock` clears its lock; by "
        f"itself the lock expires at {expires}."
    )
