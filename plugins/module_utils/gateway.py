"""What a proxy answered in place of the application, by its access log."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
from datetime import datetime
from typing import TYPE_CHECKING

from ansible.module_utils.bake import PROBES, Answers

if TYPE_CHECKING:
    from collections.abc import Sequence

# What nginx notes of an upstream that broke off, or did not answer in time. What it then tells the
# client is a matter of its configuration.
OWN_ERRORS = frozenset({"502", "504"})


class GatewayLog:
    """Follows a proxy's access log, of which each line is a JSON object with `time` and
    `upstream_status` (nginx's `$upstream_status`: one for each upstream that was tried), and maybe
    `uri`.

    An application counts what it has answered; whoever asked a process that died is known to the
    proxy alone.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._seen: list[tuple[float, bool]] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin to follow. Where there is no such log, nothing is ever counted."""
        if not self._command:
            return
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError:
            return
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def answers(self, after: float = 0, before: float = math.inf) -> Answers:
        """What was logged between two moments (Unix seconds), with the errors of the proxy's own.

        The log has whole seconds: those that the moments fall into do not count.
        """
        last = before if math.isinf(before) else int(before)
        found = [own for moment, own in list(self._seen) if int(after) < moment < last]
        return Answers(len(found), sum(found))

    def stop(self) -> None:
        """Follow no longer."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            try:
                entry = json.loads(line)
                moment = datetime.fromisoformat(entry["time"]).timestamp()
                tried = re.findall(r"\d+", entry["upstream_status"])
                if tried and entry.get("uri") not in PROBES:
                    self._seen.append((moment, tried[-1] in OWN_ERRORS))
            except (ValueError, KeyError, TypeError):
                continue  # of something else
