"""PostgreSQL 17 becomes 18 and 17 again, under clients; a kill loses nothing.

The images of 18 are built, and every step takes part of a minute: too long for `make test`, which
has the refusals alone, in `tests/backups`.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench.__main__ import Bench
from tests.figures import Figure, page, table, write
from tests.harness import ROOT, Run, playbook
from tests.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs" / "proofs" / "upgrade.md"
BENCH = Bench("compose-stack-upgrade", "/opt/compose-stack-upgrade", 19580, 19943)
# On the disk: what a container writes into memory counts as its own.
DATA = BENCH.backups.parent / "postgres"
SETTINGS = {
    **BENCH.variables,
    "stack_services": ["postgres", "redis", "rabbitmq", "api", "usage", "backup", "nginx"],
    "stack_image_source": "distro",
    "postgres_data_dir": str(DATA),
    # The mirror of a test may lag behind.
    "images_debian_stale": True,
}
PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "app", "-AtqX", "-c")
ROWS = 1_000_000
"""Usage events, in the chunks of two weeks."""
FILL = f"""
INSERT INTO items (name, description, price_cents, quantity)
    SELECT 'bulk ' || i, repeat('x', 200), i, 1 FROM generate_series(1, {ROWS // 4}) i;
INSERT INTO coupons (name, amount, remaining_amount)
    SELECT 'bulk ' || i, 2, 1 FROM generate_series(1, 500) i;
INSERT INTO claims (user_id, coupon_name)
    SELECT 'user', name FROM coupons WHERE name LIKE 'bulk %';
INSERT INTO usage_events
    SELECT now() - i * interval '1 second', 'tenant' || i % 50, 'metric' || i % 5,
        i % 1000 + 0.25, 'event' || i FROM generate_series(1, {ROWS}) i;
INSERT INTO usage_hours
    SELECT 'tenant', 'metric', date_trunc('hour', now()) - i * interval '1 hour', i, i
    FROM generate_series(1, 500) i;
CHECKPOINT
"""
CONTENT = " UNION ALL ".join(
    f"SELECT '{table}', count(*), sum(hashtextextended(it::text, 0)::numeric) FROM {table} it"
    f" WHERE {column} LIKE '{like}'"
    for table, column, like in (
        ("usage_events", "event_id", "event%"),
        ("usage_hours", "tenant", "tenant"),
        ("claims", "coupon_name", "bulk %"),
        ("items", "name", "bulk %"),
    )
)

pytestmark = pytest.mark.timeout(2400)
FIGURES: list[Figure] = []


def run(name: str, version: int, *options: str, **given: Any) -> Run:
    upgrade: dict[str, Any] = {"upgrade_confirm": BENCH.project} if "upgrade" in name else {}
    interruption = {key: given.pop(key) for key in ("interrupt_at", "kill_after") if key in given}
    variables = {**SETTINGS, "postgres_version": version, **upgrade, **given}
    return playbook(
        "inventories/test", *options, name=name, variables=variables, seconds=900, **interruption
    )


def said(run: Run) -> str:
    """What a run printed, as one line: Ansible wraps it."""
    return re.sub(r"\s+", " ", run.output)


def psql(statement: str) -> str:
    return BENCH.stack.execute("postgres", *PSQL, statement).strip()


def version() -> int:
    return int(psql("SHOW server_version_num")) // 10000


def aside() -> dict[str, str]:
    return {
        path.name: (path / "PG_VERSION").read_text().strip()
        for path in DATA.glob("pgdata.before-*")
    }


def left_over() -> list[str]:
    """What neither serves nor was set aside."""
    return sorted(
        path.name
        for path in DATA.iterdir()
        if not re.fullmatch(r"pgdata(\.before-\w+)?", path.name)
    )


def lost(traffic: Traffic) -> set[str]:
    """What was acknowledged and is not there."""
    return set(traffic.acknowledged) - set(psql("SELECT name FROM items").splitlines())


def away(traffic: Traffic) -> float:
    """Seconds from the first request that failed to the last."""
    due = [answer.due for answer in traffic.failures]
    return max(due) - min(due) if due else 0.0


def clean() -> None:
    run("clean.yml", 17, clean_confirm=BENCH.project).succeeded()
    for path in (BENCH.data, DATA.parent):
        with contextlib.suppress(OSError):
            path.rmdir()


@pytest.fixture(scope="module")
def content() -> Iterator[str]:
    """What the tables hold that nobody writes to meanwhile."""
    clean()
    try:
        run("site.yml", 17).succeeded()
        for statement in FILL.split(";"):
            psql(statement)
        yield psql(CONTENT)
    finally:
        clean()


def test_what_cannot_be_is_refused(content: str) -> None:
    """Each with cause and remedy, and the running database untouched."""
    container = BENCH.stack.one("postgres")["Id"]
    assert "There is no PostgreSQL 19 here: TO is 17 or 18" in said(
        run("rehearse_upgrade.yml", 19).failed()
    )
    assert "already" in said(run("rehearse_upgrade.yml", 17).succeeded())
    assert "Nothing was changed" in said(
        run("upgrade_postgres.yml", 18, upgrade_confirm="another").failed()
    )
    refused = said(run("site.yml", 18).failed())
    assert "holds data of PostgreSQL 17; the stack runs PostgreSQL 18" in refused
    assert "make upgrade-postgres TO=18" in refused
    refused = said(run("site.yml", 18, stack_image_source="registry").failed())
    assert "postgres_version 18 cannot be had from a registry" in refused
    assert BENCH.stack.one("postgres")["Id"] == container
    assert psql(CONTENT) == content


def test_a_rehearsal_changes_nothing_and_says_how_long(content: str) -> None:
    container = BENCH.stack.one("postgres")["Id"]
    run("build.yml", 18, stack_services=[]).succeeded()
    began = time.monotonic()
    with Traffic(BENCH.stack.site, per_second=8, uploads=0, long_requests=0) as traffic:
        rehearsed = run("rehearse_upgrade.yml", 18).succeeded()
    seconds = time.monotonic() - began
    (guess,) = re.findall(r"will be away for about (\d+) s", said(rehearsed))
    assert BENCH.stack.one("postgres")["Id"] == container
    assert not traffic.failures
    assert not left_over()
    assert psql(CONTENT) == content
    FIGURES.append(
        Figure(
            "rehearsal on a copy from the backups",
            f"{seconds:.0f} s, 0 of {len(traffic.answers)} requests failed",
        )
    )
    FIGURES.append(Figure("away, as the rehearsal says", f"{guess} s"))


def test_a_kill_in_the_middle_loses_nothing(content: str) -> None:
    """The database is away, not lost: `make up` brings it back."""
    killed = run("upgrade_postgres.yml", 18, interrupt_at="Carry it over]", kill_after=4)
    assert killed.returncode != 0
    run("site.yml", 17).succeeded()
    assert version() == 17
    assert psql(CONTENT) == content


def test_what_does_not_serve_is_exchanged_back(content: str) -> None:
    broken = {"exchange_tasks": "../../tests/prove/does_not_start.yml"}
    failed = run("upgrade_postgres.yml", 18, stack_up_timeout_seconds=90, **broken).failed()
    assert "What ran before runs on" in said(failed)
    assert version() == 17
    assert psql(CONTENT) == content
    assert run("site.yml", 17).succeeded().changed == 0
    run("forget.yml", 17).succeeded()


def test_the_upgrade_keeps_every_row(content: str) -> None:
    size = int(psql("SELECT sum(pg_database_size(oid)) FROM pg_database")) / 1e9
    with Traffic(BENCH.stack.site, per_second=8, uploads=0, long_requests=0) as traffic:
        upgraded = run("upgrade_postgres.yml", 18).succeeded()
    assert version() == 18
    assert psql(CONTENT) == content
    assert not lost(traffic)
    assert psql("SELECT count(*) FROM timescaledb_information.hypertables") == "3"
    assert psql("SHOW data_checksums") == "on"
    assert list(aside().values()) == ["17"]
    assert not left_over()
    assert "Write `postgres_version: 18` into the inventory" in said(upgraded)
    failures = traffic.failures
    assert all("503" in answer.failure for answer in failures)
    seconds = away(traffic)
    FIGURES.append(Figure("database", f"{size:.2f} GB, {ROWS:,} of its rows in a hypertable"))
    FIGURES.append(Figure("away", f"{seconds:.0f} s, {seconds / size:.0f} s for each GB"))
    FIGURES.append(
        Figure(
            "requests while away",
            f"{len(failures)} of {len(traffic.answers)} answered 503; 0 acknowledged writes lost",
        )
    )
    began = time.monotonic()
    copied = BENCH.stack.compose(
        "exec",
        "-T",
        "postgres",
        "sh",
        "-c",
        "cp -a /var/lib/postgresql/data/pgdata.before-* "
        "/var/lib/postgresql/data/copied && sync && rm -rf /var/lib/postgresql/data/copied",
    )
    assert not copied.strip()
    FIGURES.append(
        Figure("a plain copy of its files, for comparison", f"{time.monotonic() - began:.0f} s")
    )


def test_afterwards_the_inventory_has_to_agree(content: str) -> None:
    assert "Set postgres_version to 18" in said(run("site.yml", 17).failed())
    assert run("site.yml", 18).succeeded().changed == 0
    assert "kept its data elsewhere (postgres_version was 17 and is 18)" in said(
        run("rollback.yml", 18, rollback_to=1).failed()
    )
    run("restore.yml", 18, restore_time="latest", restore_confirm=BENCH.project).succeeded()
    assert version() == 18
    assert psql(CONTENT) == content


def test_the_way_back(content: str) -> None:
    """To the database of 17 as it was left; what was written since is set aside with that of 18."""
    psql("INSERT INTO items (name, description, price_cents, quantity) VALUES ('since', '', 1, 1)")
    run("upgrade_postgres.yml", 17).succeeded()
    assert version() == 17
    assert psql(CONTENT) == content
    assert psql("SELECT count(*) FROM items WHERE name = 'since'") == "0"
    assert "18" in aside().values()
    assert run("site.yml", 17).succeeded().changed == 0
    # The backups of 17 are as they were, and go on.
    run("restore.yml", 17, restore_time="latest", restore_confirm=BENCH.project).succeeded()
    assert psql(CONTENT) == content
    write(PAGE, page("Upgrade of PostgreSQL", "make prove", table(FIGURES) + "\n"))
    assert Path(PAGE).exists()
