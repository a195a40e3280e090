"""BM-8, FS-7: the database is backed up by itself and comes back, whatever happens to it.

The tests build on each other, in the order in which they stand.
"""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from tests.backups.conftest import BENCH, DAMAGE, ENGINE, INVENTORY, SETTINGS, said
from tests.harness import playbook, wait_for

if TYPE_CHECKING:
    from tests.backups.conftest import World


def test_the_first_backup_comes_by_itself(world: World) -> None:
    """BM-8: as soon as there is a database, and it is read again; `make backups` shows it."""
    wait_for("a backup", world.backups, 120, 2)
    (first,) = world.backups()
    assert first["full"]
    assert first["megabytes"] > 10
    text = said(world.run("backups.yml").succeeded())
    assert first["id"] in text
    assert "Every moment from" in text


def test_a_backup_on_demand(world: World) -> None:
    """BM-8: what has changed since the full one."""
    world.create()
    text = said(world.run("backup.yml").succeeded())
    first, second = world.backups()
    assert f"Backup {second['id']} (incremental" in text
    assert second["megabytes"] < first["megabytes"]


def test_the_account_of_the_backups_reads_no_table(world: World) -> None:
    """FS-6: it copies files by the replication protocol, and has no way into the database."""
    command = 'psql "host=postgres user=backup dbname=app passfile=/tmp/pgpass" -c "SELECT 1"'
    answer = world.stack.execute("backup", "sh", "-c", command, check=False)
    assert "no pg_hba.conf entry" in answer
    superuser = world.psql("SELECT rolsuper FROM pg_roles WHERE rolname = 'backup'")
    assert superuser == "f"


def test_barman_removes_nothing_that_the_window_needs(world: World) -> None:
    """BM-8: ten weeks, day by day, by Barman's own report with the configured policy."""
    config = (Path(BENCH.directory) / "services/backup/current/config/barman.conf").read_text()
    (days,) = re.findall(r"RECOVERY WINDOW OF (\d+) DAYS", config)
    script = (Path(__file__).parent / "retention.py").read_text()
    lines = world.report(script, "7", str(int(days) - 7))
    assert len(lines) == 1, lines
    assert lines[0].endswith("full")


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({}, "Say to what: make restore TIME="),
        ({"restore_time": "latest", "restore_backup": "1"}, "Say to what: make restore TIME="),
        ({"restore_time": "yesterday"}, "'yesterday' is no moment: write 2026-03-31"),
        ({"restore_time": "2099-01-01"}, "2099-01-01 00:00:00 UTC has not come yet"),
        ({"restore_time": "2020-01-01 10:00"}, "cannot be restored. Possible are 20"),
        ({"restore_backup": "20200101T000000"}, "There is no backup 20200101T000000. There are: 2"),
        ({"restore_release": "99"}, "There is no release 99"),
        ({"restore_aside": "pgdata.before-1"}, "There is no pgdata.before-1. Set aside are: none"),
        ({"restore_time": "latest", "restore_confirm": "yes"}, "the project is called compose-st"),
    ],
)
def test_what_cannot_be_restored(world: World, given: dict[str, str], cause: str) -> None:
    """Bad input: refused with what is possible, before anything changes."""
    before = world.stack.lives(running=True)
    run = world.restore(**given).failed()
    assert cause in said(run)
    assert "Nothing was changed" in said(run)
    assert run.changed == 0
    assert world.stack.lives(running=True) == before


def test_check_mode_only_says_so(world: World) -> None:
    """`--check` plans and changes nothing."""
    before = world.stack.lives(running=True)
    run = world.restore("--check", restore_time="latest").succeeded()
    assert run.changed == 0
    assert world.stack.lives(running=True) == before
    assert not (world.data / "pgdata.restored").exists()


def test_a_version_that_does_not_fit(world: World) -> None:
    """Bad input: a clear message, and the database untouched. `tests/prove` upgrades it."""
    container = world.stack.one("postgres")["Id"]
    for version, cause in ((16, "TO is 17 or 18"), (19, "TO is 17 or 18")):
        refused = world.run("upgrade_postgres.yml", postgres_version=version).failed()
        assert cause in said(refused)
    refused = world.run("site.yml", postgres_version=18, stack_image_source="distro").failed()
    assert "holds data of PostgreSQL 17; the stack runs PostgreSQL 18" in said(refused)
    assert "make upgrade-postgres TO=18" in said(refused)
    assert world.stack.one("postgres")["Id"] == container


def test_a_release_comes_back(world: World) -> None:
    """FS-7: the database as it was just before a release, and back to what was set aside."""
    kept = world.create()
    time.sleep(1.1)  # a release's moment has whole seconds
    world.run("site.yml", api_workers=3).succeeded()
    lost = world.create()
    records = sorted(Path(BENCH.directory, "state", "releases").glob("[0-9]*"))
    number = max(int(path.name) for path in records)
    text = said(world.restore(restore_release=str(number)).succeeded())
    assert "every page and index as it should be" in text
    assert "The database is that of" in text
    world.settle()
    assert kept in world.names()
    assert lost not in world.names()
    after = world.create()
    (aside,) = world.aside()
    world.restore(restore_aside=aside).succeeded()
    world.settle()
    assert lost in world.names()
    assert after not in world.names()


def test_what_does_not_serve_is_exchanged_back(world: World) -> None:
    """FS-7: by itself, and nothing that was written is lost; another's database does not serve."""
    name = world.create()
    # In PostgreSQL's own container, which alone has what makes one.
    foreign = "/var/lib/postgresql/data/pgdata.before-foreign"
    world.stack.execute("postgres", "initdb", "--no-instructions", "--auth=peer", "-D", foreign)
    run = world.restore(restore_aside="pgdata.before-foreign", stack_up_timeout_seconds=40).failed()
    assert "What was restored does not serve" in said(run)
    assert "is another than the one that was there" in ENGINE.run("docker", "logs", POSTGRES)
    assert "The database that ran before runs again." in said(run)
    world.settle()
    assert name in world.names()
    assert world.run("forget.yml").succeeded().changed == 1
    assert world.aside() == []
    assert world.run("forget.yml").succeeded().changed == 0


def test_a_damaged_page_is_found(world: World) -> None:
    """Bad input: one flipped bit in the backup of a table, and the running database stays."""
    newest = world.backups()[-1]["id"]
    relation = world.psql("SELECT pg_relation_filepath('items')")
    path = world.archive / "base" / newest / "data" / relation
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    before = world.stack.lives(running=True)
    try:
        run = world.restore(restore_backup=newest).failed()
    finally:
        content[-100] ^= 1
        path.write_bytes(content)
    assert "is damaged" in said(run)
    assert "The running database was not touched." in said(run)
    assert world.stack.lives(running=True) == before


def test_missing_wal_is_found(world: World) -> None:
    """Bad input: a segment that is gone is named, and the running database stays."""
    world.create()
    world.stack.execute("backup", *FLUSH)
    world.create()
    moment = world.now()
    world.stack.execute("backup", *FLUSH)
    timeline = world.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")[:8]
    (*_, gone) = sorted(path for path in (world.archive / "wals").glob(f"{timeline}*/{timeline}*"))
    text = gone.read_bytes()
    owner = gone.stat()
    gone.unlink()
    try:
        run = world.restore(restore_time=moment).failed()
    finally:
        gone.write_bytes(text)
        os.chown(gone, owner.st_uid, owner.st_gid)
    assert f"The archive lacks {gone.name}" in said(run)
    assert "The running database was not touched." in said(run)


def test_a_drill(world: World) -> None:
    """FS-7: a restore is proved apart from everything, and `make backups` says when."""
    before = world.stack.lives(running=True)
    text = said(world.run("drill.yml").succeeded())
    assert "from the archive on this host" in text
    assert "every page and index as it should be, and it ends where it should" in text
    assert "The application works on it." in text
    assert world.stack.lives(running=True) == before
    assert "Proved at" in said(world.run("backups.yml").succeeded())
    for name in ("drill", "drill-api"):
        assert list(world.stack.one(name)["NetworkSettings"]["Networks"]) == ["none"]
    metrics = world.metrics()
    assert metrics["backup_drill_from_copy"] == 0
    assert metrics["backup_drill_rows"] > 0
    assert metrics["backup_drill_failing"] == 0
    assert time.time() - metrics["backup_drill_last_success_timestamp_seconds"] < 60


def test_a_logical_dump(world: World) -> None:
    """FS-7, BM-8: the first drill has left one, for PostgreSQL's own tools."""
    (dump,) = world.keeper("list")["dumps"]
    assert dump["files"] == ["app.dump", "postgres.dump", "roles.sql"]
    assert dump["rows"] > 0
    assert f"dump {dump['name']}" in said(world.run("backups.yml").succeeded())
    path = BENCH.backups / "dumps" / dump["name"]
    ENGINE.run("sh", "-c", f"cd {path} && sha256sum --check --quiet SHA256SUMS")
    assert "CREATE ROLE app_owner" in (path / "roles.sql").read_text()
    items = world.stack.engine.run(
        "sh", "-c", 'docker exec -i "$0" pg_restore --file=- --data-only --table=items < "$1"',
        world.stack.one("postgres")["Id"], str(path / "app.dump"),
    )  # fmt: skip
    assert "COPY public.items" in items


def test_an_application_that_does_not_work_on_it(world: World) -> None:
    """FS-7: the drill says what the application's smoke test does; nothing of it stays."""
    before = world.psql("SELECT count(*) FROM items")
    required = "ALTER TABLE items ADD note int NOT NULL DEFAULT 0"
    filled = "ALTER TABLE items ALTER note DROP DEFAULT"
    with world.while_there(f"{required}; {filled}", "ALTER TABLE items DROP note"):
        answer = world.keeper("drill")
    assert "the application does not work on it: smoke: POST /api/items answered 500" in str(answer)
    assert world.psql("SELECT count(*) FROM items") == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_turns_a_drill_red(world: World, damage: str) -> None:
    """FS-7: damage is found by the next drill, which says what it is."""
    with world.damaged(damage):
        answer = world.keeper("drill")
    assert re.search(DAMAGE[damage], answer.get("refused", "")), answer
    assert world.metrics()["backup_drill_failing"] == 1


def test_a_drill_that_is_green_again(world: World) -> None:
    """FS-7: `make backups` says that it failed and why, until the next one succeeds."""
    assert "The drill failed at" in said(world.run("backups.yml").succeeded())
    text = said(world.run("backup.yml").succeeded())
    assert "(full, " in text, "nothing is built on what could not be restored"
    world.run("drill.yml").succeeded()
    assert world.metrics()["backup_drill_failing"] == 0
    assert "The drill failed at" not in said(world.run("backups.yml").succeeded())


def test_an_interrupted_restore(world: World) -> None:
    """Bad input: killed while it is laid out; the database serves, and the next one works."""
    name = world.create()
    time.sleep(0.2)
    moment = world.now()
    before = world.stack.lives(running=True)
    given = {"restore_time": moment, "restore_confirm": BENCH.project}
    playbook(
        INVENTORY, name="restore.yml", variables={**SETTINGS, **given},
        interrupt_at="TASK [Lay it out beside", kill_after=2, seconds=120,
    ).failed()  # fmt: skip
    after = world.stack.lives(running=True)
    assert {key: after.get(key) for key in before} == before
    assert name in world.names()
    later = world.create()
    # What the killed run had started may still be at it: the next one ends it.
    world.restore(restore_time=moment).succeeded()
    world.settle()
    assert name in world.names()
    assert later not in world.names()


def test_a_lost_disk(world: World) -> None:
    """FS-7: everything that had been received before the disk was lost is there again."""
    written: list[str] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            try:
                written.append(world.create())
            except (AssertionError, requests.RequestException):
                stop.wait(0.2)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    wait_for("some writes", lambda: len(written) > 20, 60)
    # Whole files of WAL that nobody has archived yet are received, too.
    for _ in range(2):
        world.psql("SELECT pg_switch_wal()")
        enough = len(written) + 5
        while len(written) < enough:
            time.sleep(0.1)
    received = set(written)
    end = world.psql("SELECT pg_current_wal_lsn()")
    receiver = f"SELECT write_lsn >= '{end}' FROM pg_stat_replication"
    wait_for("what was written to be received", lambda: world.psql(receiver) == "t", 60)
    ENGINE.run("docker", "kill", POSTGRES)
    stop.set()
    thread.join()
    ENGINE.run("rm", "-rf", str(world.data / "pgdata"))
    # As after a reboot: it does not take the empty disk for a first start.
    ENGINE.run("docker", "start", POSTGRES)
    refused = f"There is no database in {world.data}, and there was one"
    wait_for("the refusal", lambda: refused in ENGINE.run("docker", "logs", POSTGRES), 30)
    assert not (world.data / "pgdata").exists()
    world.restore(restore_time="latest").succeeded()
    world.settle()
    assert received <= world.names()


POSTGRES = f"{BENCH.project}-postgres-1"
FLUSH = ("python3", "/etc/compose-stack/current/bin/keeper.py", "flush")
