"""CS-4: the application's image, as it was built last (or STACK_IMAGE_API)."""

from __future__ import annotations

import json
import subprocess

import pytest

from conftest import image

LIMIT = 200 * 1000 * 1000
"""Bytes; on the distribution's base it is 160 MB, on the official one more."""


@pytest.fixture(scope="module")
def reference() -> str:
    return image("api")


def inside(reference: str, script: str, *options: str) -> str:
    """Run a script in the image as it runs in production: read-only and without capabilities."""
    done = subprocess.run(
        [
            *("docker", "run", "--rm", "--read-only", "--cap-drop", "ALL", "--network", "none"),
            *("--security-opt", "no-new-privileges", "--tmpfs", "/tmp", "--entrypoint", "/bin/sh"),
            *(*options, reference, "-c", script),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_that_does_not_belong(reference: str) -> None:
    """CS-4: no compiler, no pip, no pip cache, no test code."""
    tools = "gcc cc g++ clang make pip pip3 pytest mypy ruff"
    assert inside(reference, f"command -v {tools} || true") == ""
    found = inside(
        reference,
        "find / -xdev \\( -path /proc -o -path /sys \\) -prune -o"
        " \\( -name conftest.py -o -name 'test_*.py' -o -path '*/.cache/pip'"
        " -o -path '*site-packages/*/tests' -o -path '*site-packages/pip' \\) -print"
        # As root: nobody else may look into /root.
        " 2>/dev/null || true",
        *("--user", "0", "--cap-add", "DAC_READ_SEARCH"),
    )
    assert inside(reference, "ls /root", "--user", "0") == ""
    assert found == ""


def test_user_size_and_environment(reference: str) -> None:
    """CS-4, FS-8: not root, small, and no secret baked in."""
    shown = subprocess.run(
        ["docker", "image", "inspect", reference], capture_output=True, text=True, check=True
    )
    (description,) = json.loads(shown.stdout)
    assert description["Config"]["User"] == "10001:10001"
    assert description["Size"] < LIMIT
    assert not [line for line in description["Config"]["Env"] if "PASSWORD" in line]
    assert inside(reference, "id -u; id -g") == "10001\n10001"


def test_commands(reference: str) -> None:
    """CS-4: what the stack calls is there, compiled, and works on a read-only file system."""
    assert inside(reference, "command -v gunicorn alembic compose-app python3").count("/") >= 4
    assert "usage" in inside(reference, "compose-app --help")
    written = inside(
        reference,
        "python3 -c 'import compose_app.app, compose_app.migrate, sys;"
        ' print(all(m.__cached__ and __import__("os").path.exists(m.__cached__)'
        ' for n, m in sys.modules.items() if n.startswith("compose_app")))\'',
    )
    assert written == "True"


def test_source_may_be_mounted(reference: str) -> None:
    """UT-12: a source tree mounted on /app/src goes before the installed package."""
    assert inside(reference, "python3 -c 'import sys; print(\"/app/src\" in sys.path)'") == "True"
