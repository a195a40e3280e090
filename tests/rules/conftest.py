"""promtool, from wherever there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs promtool in the repository: one on PATH, else that of the image in PROMTOOL_IMAGE."""
    if found := shutil.which("promtool"):
        command = [found]
    elif image := os.environ.get("PROMTOOL_IMAGE"):
        root = Path("/repo")
        command = ["docker", "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL"]
        # promtool keeps the samples of a test in a temporary directory.
        command += ["--tmpfs=/tmp:mode=1777", "--user=65534:65534", f"--volume={ROOT}:{root}:ro"]
        command += [f"--workdir={root}", "--entrypoint=promtool", image]
    else:
        pytest.fail(
            "no promtool: put one on PATH (Debian's package `promtool`, 2.53 or later) or name "
            "a Prometheus image in PROMTOOL_IMAGE",
            pytrace=False,
        )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
