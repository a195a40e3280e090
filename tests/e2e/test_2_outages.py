"""What a user sees while a part is gone, and that it comes back by itself."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import wait_for
from tests.public import assert_headers

from .conftest import DIRECTORY

if TYPE_CHECKING:
    import requests

    from tests.harness import Stack

pytestmark = pytest.mark.timeout(120, func_only=True)

# Each path, and what it needs.
NEEDS = {
    "postgres": "/api/items/1",
    "redis-cache": "/api/cache/outage",
    "redis-queue": "/health",
}


def assert_unavailable(stack: Stack, path: str) -> None:
    """503 with Retry-After within 3 s, and never a hang or a 500."""
    began = time.monotonic()
    answer = stack.site.patiently("GET", path)
    assert time.monotonic() - began < 4, path
    assert answer.status_code == 503, path
    assert int(answer.headers["Retry-After"]) >= 1
    assert_headers(answer)


@pytest.mark.parametrize("service", sorted(NEEDS))
def test_database_killed(stack: Stack, service: str) -> None:
    """CS-2: 503 while it is down; it is restarted by Docker, and the API reconnects by itself."""
    container = stack.one(service)["Id"]
    lives = stack.lives()
    stack.engine.run("docker", "kill", "--signal=KILL", container)
    try:
        assert_unavailable(stack, NEEDS[service])
        assert_unavailable(stack, "/health")
    finally:
        # Docker does not restart what was killed by command.
        stack.engine.run("docker", "start", container)
    stack.wait_healthy(60)
    # One worker answered the health check; each of the others tries again by itself, soon.
    wait_for(
        "every worker has reconnected",
        lambda: (
            {stack.site.patiently("GET", NEEDS[service]).status_code for _ in range(8)}
            <= {200, 404}
        ),
        20,
        1,
    )
    after = stack.lives()
    touched = {name for name in lives if lives[name] != after[name]}
    assert touched == {f"{service}-1"}, "the API recovers without a restart"


@pytest.mark.parametrize("service", sorted(NEEDS))
def test_database_frozen(stack: Stack, service: str) -> None:
    """CS-2: one that accepts and never answers is worse than one that is gone."""
    container = stack.one(service)["Id"]
    stack.engine.run("docker", "pause", container)
    try:
        assert_unavailable(stack, NEEDS[service])
    finally:
        stack.engine.run("docker", "unpause", container)
    stack.wait_healthy(60)


def test_crash_is_repaired(stack: Stack) -> None:
    """CS-1: a process that dies is started again without anyone's help."""
    before = stack.one("redis-cache")["State"]["StartedAt"]
    pid = stack.one("redis-cache")["State"]["Pid"]
    stack.engine.run("kill", "-KILL", str(pid))
    wait_for(
        "redis-cache started again",
        lambda: (
            stack.services().get("redis-cache")
            and stack.one("redis-cache")["State"]["StartedAt"] != before
        ),
        20,
    )
    stack.wait_healthy(60)


def test_application_stopped(stack: Stack) -> None:
    """CS-2, CS-9: nginx answers 503 in the application's place, with the same headers."""
    container = stack.one(stack.api_slot())["Id"]
    stack.engine.run("docker", "stop", container)
    try:
        for path in ("/health", "/api/items"):
            answer = stack.site.patiently("GET", path)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert_headers(answer)
    finally:
        stack.engine.run("docker", "start", container)
    stack.wait_healthy(60)


def test_console_survives_restarts(stack: Stack) -> None:
    """FS-4: signed in and with a form half filled in, while every container is restarted."""
    password = Path(DIRECTORY, "secrets", "operator_password").read_text().strip()
    cookie: dict[str, str] = {}

    def ask(method: str, path: str, **form: str) -> requests.Response:
        answer = stack.site.patiently(method, path, headers=cookie, data=form or None)
        if "Set-Cookie" in answer.headers:
            cookie["Cookie"] = answer.headers["Set-Cookie"].split(";")[0]
        assert_headers(answer)
        return answer

    def token(path: str) -> str:
        found = re.search(r'name="csrf_token" value="([^"]+)"', ask("GET", path).text)
        assert found is not None
        return found[1]

    signed = token("/console/login")
    assert ask("POST", "/console/login", password="wrong", csrf_token=signed).status_code == 403
    signed = token("/console/login")
    entered = ask("POST", "/console/login", password=password, csrf_token=signed)
    assert (entered.status_code, entered.headers["Location"]) == (303, "/console")
    form = token("/console/coupons")
    stack.compose("restart", seconds=200)
    stack.wait_healthy(60)
    name = f"console {time.time_ns()}"
    coupon = {"name": name, "amount": "3", "csrf_token": form}
    assert ask("POST", "/console/coupons", **coupon).status_code == 303
    assert f"{name} is there." in ask("GET", "/console/coupons").text
