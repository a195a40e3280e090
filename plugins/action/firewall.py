"""Ansible action plugin: confirm new rules over a new connection, or see them taken back."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

# How long the host is asked for after it was to put the old rules back.
PATIENCE_SECONDS = 30


class ActionModule(ActionBase):  # type: ignore[misc, unused-ignore]
    """Runs the module of the same name, a second time when there is something to confirm."""

    _supports_check_mode = True
    _requires_connection = True
    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if self._connection.transport == "local":
            # There is no connection that the rules could close.
            arguments["trial_seconds"] = 0
        seconds = int(arguments.get("trial_seconds", 30))
        answer = self._execute(arguments, task_vars)
        result.update(answer)
        token = answer.get("trial")
        if not token:
            return result
        ends = time.monotonic() + seconds
        confirmed, why = self._ask({**arguments, "confirm": token}, task_vars)
        if "taken_back" not in confirmed:
            time.sleep(max(0, ends + 1 - time.monotonic()))
            confirmed, why = self._wait({**arguments, "confirm": token}, task_vars, why)
        if confirmed.get("taken_back") is False and not confirmed.get("failed"):
            return result
        result.update(failed=True, changed=False, msg=verdict(confirmed, why, seconds))
        return result

    def _execute(
        self, arguments: dict[str, Any], task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="firewall", module_args=arguments, task_vars=task_vars
        )
        return answer

    def _ask(
        self, arguments: dict[str, Any], task_vars: dict[str, Any] | None
    ) -> tuple[dict[str, Any], str]:
        """Ask over a connection that is made for it; the answer, or why there is none."""
        try:
            # What is connected already would stay so under any rules.
            self._connection.reset()
            answer = self._execute(arguments, task_vars)
        except AnsibleConnectionFailure as error:
            return {}, brief(error)
        except AnsibleError as error:
            return {}, brief(error)
        return answer, str(answer.get("msg") or answer.get("module_stderr") or "")

    def _wait(
        self, arguments: dict[str, Any], task_vars: dict[str, Any] | None, why: str
    ) -> tuple[dict[str, Any], str]:
        """See that the old rules are in force again. The first reason is the one that counts."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer, _ = self._ask(arguments, task_vars)
            if "taken_back" in answer or time.monotonic() > deadline:
                return answer, why
            time.sleep(2)


def brief(error: Exception) -> str:
    text = str(getattr(error, "_original_message", None) or getattr(error, "message", error))
    return " ".join(text.split())


def verdict(confirmed: dict[str, Any], why: str, seconds: int) -> str:
    """What went wrong, how things are now, and what to do."""
    if confirmed.get("failed"):
        return why
    cause = f"With the new firewall no new connection came through within {seconds} s: {why}"
    if "taken_back" in confirmed:
        now = "The host has put the rules back that were in force before; nothing else was changed."
    else:
        now = (
            "The host was to put the rules back that were in force before, and does not answer. "
            "Its console shows more: nft list table inet compose-stack."
        )
    return (
        f"{cause}\n{now}\nRemedy: leave firewall_ssh_ports empty, and the ports that sshd listens "
        "on are found; or name them. On a slow line raise firewall_trial_seconds."
    )
