"""A host that is deployed, used, copied elsewhere, and gone.

What it had acknowledged is kept for `test_recovered.py`.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import wait_for

from .conftest import KEEPER, LOST, NAME

if TYPE_CHECKING:
    from tests.harness import Stack

pytestmark = pytest.mark.timeout(180, func_only=True)


def item(stack: Stack) -> str:
    name = uuid.uuid4().hex
    answer = stack.site.patiently("POST", "/api/items", json={"name": name, "price_cents": 1})
    assert answer.status_code == 201, answer.text
    return name


def signed_in(stack: Stack) -> str:
    """The cookie of an operator who has signed in."""
    page = stack.site.patiently("GET", "/console/login")
    token = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert token is not None, page.text
    answer = stack.site.patiently(
        "POST", "/console/login", cookies={"console": page.cookies["console"]},
        data={
            "csrf_token": token[1],
            "password": stack.engine.run("cat", f"{stack.directory}/secrets/operator_password"),
        },
        headers={"Referer": f"https://{stack.site.name}/console/login"},
    )  # fmt: skip
    assert answer.status_code == 303, answer.text
    return str(answer.cookies["console"])


def usage(stack: Stack, tenant: str, count: int) -> None:
    events = [
        {
            "event_id": uuid.uuid4().hex, "tenant": tenant, "metric": "requests", "quantity": 1,
            "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }
        for _ in range(count)
    ]  # fmt: skip
    answer = stack.site.patiently(
        "POST", "/api/usage/events", data="\n".join(map(json.dumps, events)),
        headers={"Content-Type": "application/x-ndjson"},
    )  # fmt: skip
    assert answer.status_code == 202, answer.text


def test_the_host_is_lost(stack: Stack) -> None:
    """FS-7: items in PostgreSQL, a session and events that wait in Redis; all disks gone."""
    stack.wait_healthy()
    tenant = f"t-{uuid.uuid4().hex}"
    stack.compose("stop", "processor")
    lost: dict[str, Any] = {
        "items": [item(stack) for _ in range(20)],
        "tenant": tenant,
        "session": signed_in(stack),
    }
    for _ in range(5):
        usage(stack, tenant, 100)
    for name in ("operator_password", "postgres_app_password"):
        lost[name] = stack.engine.run("cat", f"{stack.directory}/secrets/{name}")
    lost["ca"] = stack.site.ca.read_text()
    time.sleep(2)
    copied = json.loads(stack.execute("offsite", *KEEPER, "copy"))
    lost["snapshot"] = copied["snapshot"]
    # Acknowledged as well, and in no copy.
    lost["late"] = [item(stack) for _ in range(5)]
    lost["key"] = stack.engine.run("cat", f"{stack.directory}/secrets/offsite_password")
    LOST.write_text(json.dumps(lost))
    LOST.chmod(0o600)
    subprocess.run(["docker", "rm", "--force", "--volumes", NAME], check=True, capture_output=True)
    wait_for("the host gone", lambda: not stack.engine.succeeds("true"))
