"""A bare host that takes the place of the lost one, by `make recover` alone."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.figures import Figure, page, table, write
from tests.harness import ROOT, Engine, playbook, wait_for

from .conftest import LOST, NAME, SCRATCH

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Run, Stack

pytestmark = pytest.mark.timeout(600, func_only=True)

PAGE = ROOT / "docs" / "proofs" / "recover.md"
PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "app", "-XAtqc")


@pytest.fixture(scope="session")
def lost() -> dict[str, Any]:
    return dict(json.loads(LOST.read_text()))


@pytest.fixture(scope="session")
def recovered(lost: dict[str, Any], address: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    host = Engine(("docker", "exec", NAME))
    assert not host.succeeds("sh", "-c", "command -v docker || ls /opt/compose-stack")
    key: Path = tmp_path_factory.mktemp("key") / "key"
    key.write_text(f"{lost['key']}\n")
    return playbook(
        SCRATCH / "inventory", name="recover.yml", seconds=500,
        variables={
            "recover_confirm": "compose-stack", "recover_key_file": str(key),
            # The host that molecule knows may have had another address.
            "ansible_host": address,
        },
    ).succeeded()  # fmt: skip


def test_it_is_what_it_was(recovered: Run, lost: dict[str, Any], stack: Stack) -> None:
    """FS-7, CS-1: secrets, certificates, every row, session and event from before the last copy."""
    stack.wait_healthy()
    assert lost["snapshot"] in recovered.output
    assert lost["key"] not in recovered.output
    for name in ("operator_password", "postgres_app_password"):
        assert stack.engine.run("cat", f"{stack.directory}/secrets/{name}") == lost[name]
    assert stack.site.ca.read_text() == lost["ca"]
    names = set(stack.execute("postgres", *PSQL, "SELECT name FROM items").split())
    assert set(lost["items"]) <= names
    answer = stack.site.patiently("GET", "/console/items", cookies={"console": lost["session"]})
    assert answer.status_code == 200, "the session is known"
    count = f"SELECT count(*) FROM usage_events WHERE tenant = '{lost['tenant']}'"
    wait_for(
        "events that had waited in Redis, once each",
        lambda: stack.execute("postgres", *PSQL, count).strip() == "500",
        60,
    )
    assert not stack.engine.succeeds("test", "-e", f"{stack.directory}/.recovering")
    if os.environ.get("KEEP_PROOF"):
        keep(recovered, lost, stack, names)


# Bytes that nothing can compress, copied plainly and out of a repository, on the same disk.
PACE = """
mkdir /pace/source
head -c 1073741824 /dev/urandom > /pace/source/bytes
echo key > /pace/key
export RESTIC_REPOSITORY=/pace/repository RESTIC_PASSWORD_FILE=/pace/key
export RESTIC_CACHE_DIR=/pace/cache
restic -q init
restic -q backup /pace/source
sync
date +%s.%N
cp /pace/source/bytes /pace/plain; sync
date +%s.%N
restic -q restore latest:/pace/source --target /pace/back > /dev/null; sync
date +%s.%N
"""


def pace(stack: Stack) -> tuple[float, float]:
    """Seconds for a GiB: by a plain copy, and by restic."""
    image = stack.one("offsite")["Config"]["Image"]
    place = "/var/tmp/pace"
    stack.engine.run("mkdir", place)
    said = stack.engine.run(
        "docker", "run", "--rm", "--network=none", f"--volume={place}:/pace", image, "sh", "-euc",
        PACE, seconds=300,
    )  # fmt: skip
    began, copied, restored = (float(line) for line in said.splitlines()[-3:])
    return copied - began, restored - copied


def keep(recovered: Run, lost: dict[str, Any], stack: Stack, names: set[str]) -> None:
    """Write the page of what was measured."""
    said = re.sub(r"\s+", " ", recovered.output)
    took = re.search(r"is back, ([0-9]+) s after the command", said)
    size = re.search(r"Copy \S+ of [^,]+, ([0-9]+) MiB", said)
    assert took is not None
    assert size is not None
    late = len(set(lost["late"]) - names)
    plain, restic = pace(stack)
    figures = [
        Figure("from the command to a healthy stack on a bare host", f"{took[1]} s"),
        Figure("the copy: archive, secrets, certificates, releases, Redis", f"{size[1]} MiB"),
        Figure(
            "1 GiB of random bytes out of a repository / by a plain copy, on the same disk",
            f"{restic:.1f} s / {plain:.1f} s",
        ),
        Figure(
            "acknowledged before the last copy and lost: rows, sessions, usage events",
            "0",
            "0",
            True,
        ),
        Figure(
            "acknowledged after it and lost, with the host", f"{late} of {len(lost['late'])} rows"
        ),
    ]
    write(PAGE, page("Recovery", "KEEP_PROOF=1 make test-molecule", f"{table(figures)}\n\n{NOTES}"))


NOTES = """\
- The host of `molecule test` was deployed, used, copied to a directory of another machine, and
  removed with all its disks. The new one is a bare Debian 13 with systemd and SSH. `make recover`
  gets the inventory, the bundle of images and the key; it installs Docker, loads the images,
  restores the files, restores the database and reads all of it, and starts the whole stack.
- Of a copy as small as this one the time is that of Docker, the images and the containers' start.
  Each GiB adds what is in the table, or what the line takes, and about a minute in which the
  restored database is read.
"""
