"""Processes that are killed at random under load, many times: what `make test` does a few times."""

from __future__ import annotations

import os
import re
import subprocess
import time

import pytest

from tests.figures import page, write
from tests.harness import ROOT

PAGE = ROOT / "docs" / "proofs" / "kills.md"
KILLS = 50
USERS = 10_000
PROOFS = {
    "usage": (
        f"usage events: the processor and the aggregator, {KILLS} times each",
        "tests/test_usage.py::test_killed_at_random",
        "every event that was acknowledged is counted, and counted once, as are all three roll-ups",
    ),
    "messages": (
        f"birthday messages to {USERS} users: schedulers and workers, {2 * KILLS} times in all",
        "tests/test_messages.py::test_killed_at_random",
        "the email service has exactly one message of each",
    ),
}
NOTES = """\
- Each process is killed with SIGKILL at a random moment while it works, and started again.
- Usage: clients send every batch twice, as if the first answer had been lost.
- Messages: meanwhile users change their time zones, one request in ten fails, and of one in ten the
  answer is lost after the message was taken, so that it is asked for again.
"""

pytestmark = pytest.mark.timeout(3600)


def test_killed_at_random() -> None:
    """UT-2, UT-4, BM-2: nothing is lost, and nothing happens twice."""
    rows, failed = [], []
    for name, (killed, test, law) in PROOFS.items():
        began = time.monotonic()
        done = subprocess.run(
            ["../.venv-app/bin/python", "-m", "pytest", "-q", "-o", "timeout=3000", test],
            cwd=ROOT / "app",
            env={
                **os.environ,
                "PROCESSOR_KILLS": str(KILLS),
                "BIRTHDAY_KILLS": str(2 * KILLS),
                "BIRTHDAY_USERS": str(USERS),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        passed = done.returncode == 0 and re.search(r"\b1 passed", done.stdout) is not None
        print(f"{name}: {'holds' if passed else done.stdout[-3000:]}", flush=True)
        failed += [] if passed else [name]
        said = "holds" if passed else "**does not hold**"
        rows.append(f"| {killed} | {law} | {said}, {time.monotonic() - began:.0f} s |")
    text = "\n".join(["| Killed | Law | Result |", "|---|---|---|", *rows])
    write(PAGE, page("Kills", "make prove", f"{text}\n\n{NOTES}"))
    assert failed == []
