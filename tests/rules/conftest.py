"""promtool, from wherever there is one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.images.conftest import images

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


def own_image() -> str:
    """The stack's image of Prometheus, built when it is missing."""
    return images("distro", stack_profiles=["monitoring"]).refs["prometheus"]


@pytest.fixture(scope="session")
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs promtool in the repository: of the image in PROMTOOL_IMAGE, or of the stack's own."""
    image = os.environ.get("PROMTOOL_IMAGE") or own_image()
    root = Path("/repo")
    command = ["docker", "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL"]
    # promtool keeps the samples of a test in a temporary directory.
    command += ["--tmpfs=/tmp:mode=1777", "--user=65534:65534", f"--volume={ROOT}:{root}:ro"]
    command += [f"--workdir={root}", "--entrypoint=promtool", image]

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
