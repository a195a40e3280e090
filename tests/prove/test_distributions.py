"""The container host's scenario on the distributions that `make test` has no time for."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from tests.figures import Figure, page, table, write
from tests.harness import ROOT

PAGE = ROOT / "docs" / "proofs" / "distributions.md"

pytestmark = pytest.mark.timeout(1500)


def test_ubuntu() -> None:
    """CS-1: a bare Ubuntu 24.04 takes the stack as Debian 13 does, with Ubuntu's own engine."""
    began = time.monotonic()
    done = subprocess.run(
        ["molecule", "test", "--all"],
        env={**os.environ, "CONTAINERHOST": "ubuntu-24.04"},
        cwd=ROOT,
        check=False,
    )
    passed = done.returncode == 0
    took = f"{'passed' if passed else 'failed'} after {time.monotonic() - began:.0f} s"
    figures = [Figure("Ubuntu 24.04: the scenario of `molecule test`", took, "passes", passed)]
    write(PAGE, page("Distributions", "make prove", table(figures) + "\n"))
    assert passed
