"""Appends one JSON line about each ansible-playbook run: what changed, failed and was executed."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: run_record
type: aggregate
short_description: Record what a run changed and how many module executions it took
description:
  - Appends one line of JSON to a file when a run ends.
  - A module execution is one call of C(_execute_module), whichever action plugin makes it,
    loop items included. That is what a run costs; tasks that stay on the controller cost
    nothing and are not counted.
requirements:
  - enable in configuration
options:
  run_record_file:
    description: File to append to. Nothing is recorded without it.
    type: path
    env:
      - name: ANSIBLE_RUN_RECORD_FILE
"""


class CallbackModule(CallbackBase):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "run_record"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._playbook = ""
        self._changed: list[str] = []
        self._failed: list[dict[str, str]] = []
        # Workers are forked after this point and inherit both the patch and the descriptor's path.
        handle, name = tempfile.mkstemp(prefix="run-record-")
        os.close(handle)
        self._executions = Path(name)
        atexit.register(self._executions.unlink, missing_ok=True)
        self._count_executions()

    def _count_executions(self) -> None:
        original = ActionBase._execute_module
        path = self._executions

        def counted(action: ActionBase, *args: Any, **kwargs: Any) -> Any:
            module = kwargs.get("module_name") or (args[0] if args else None) or action._task.action
            line = json.dumps([action._task.get_name(), str(module)]) + "\n"
            with path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(line)
            return original(action, *args, **kwargs)

        ActionBase._execute_module = counted

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self._playbook = Path(playbook._file_name).name

    def v2_runner_on_ok(self, result: Any) -> None:
        if result._result.get("changed"):
            self._changed.append(result._task.get_name())

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            message = str(result._result.get("msg", ""))
            self._failed.append({"task": result._task.get_name(), "msg": message})

    def v2_playbook_on_stats(self, stats: Any) -> None:
        executions = [json.loads(line) for line in self._executions.read_text().splitlines()]
        self.set_options()
        target = self.get_option("run_record_file")
        if not target:
            return
        hosts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        record = {
            "playbook": self._playbook,
            "check": bool(context.CLIARGS.get("check", False)),
            "seconds": round(time.monotonic() - self._began, 2),
            "changed": sum(summary["changed"] for summary in hosts.values()),
            "changed_tasks": self._changed,
            "failed_tasks": self._failed,
            "executions": executions,
            "hosts": hosts,
        }
        with Path(target).open("a") as file:
            file.write(json.dumps(record) + "\n")
