"""FS-3, UT-5, CS-15: `compose-app migrate`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.pool import NullPool

from compose_app import migrate
from conftest import SRC, Backends, free_port, wait_for

KNOWN = sorted(path.name[:4] for path in SRC.glob("compose_app/migrations/versions/[0-9]*.py"))
HEAD = KNOWN[-1]


def run(
    backends: Backends, command: str = "migrate", src: Path = SRC, **changes: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compose_app", command],
        env={"PATH": os.environ["PATH"], **backends.environ, "PYTHONPATH": str(src), **changes},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def names(backends: Backends) -> list[str]:
    with backends.connect() as connection:
        return [row[0] for row in connection.execute("SELECT name FROM items ORDER BY id")]


@pytest.fixture
def empty(clean: Backends) -> Backends:
    """The database as it is before the first migration."""
    with clean.connect() as connection:
        for hypertable in ("usage_events", "usage_minutes", "usage_hours"):
            connection.execute(f"DROP TABLE {hypertable}")  # each goes alone
        connection.execute(
            "DROP TABLE items, claims, coupons, users, usage_event_ids, usage_rejected,"
            " usage_changes, usage_days, birthday_messages, birthday_outbox, birthday_plan,"
            " alembic_version"
        )
        connection.execute("DROP FUNCTION note_usage_changes, drop_usage_chunks")
    return clean


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source tree, to be changed."""
    src = tmp_path / "src"
    shutil.copytree(SRC, src, ignore=shutil.ignore_patterns("__pycache__"))
    return src


def add_migration(src: Path, revision: str, before: str, statement: str) -> None:
    (src / "compose_app" / "migrations" / "versions" / f"{revision}_x.py").write_text(
        f"from alembic import op\nrevision = '{revision}'\ndown_revision = '{before}'\n"
        f"def upgrade() -> None:\n    op.execute('{statement}')\n"
    )


@pytest.fixture
def broken(source: Path) -> Path:
    """A source tree whose second migration works and whose third does not."""
    add_migration(source, "9001", HEAD, "ALTER TABLE items ADD COLUMN colour text")
    add_migration(source, "9002", "9001", "ALTER TABLE items ADD COLUMN colour text")
    return source


def test_twice(empty: Backends) -> None:
    """FS-3: in order, once, and safe to run again; the application's role may use the table."""
    for _ in range(2):
        done = run(empty)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "schema is up to date" in done.stdout
    with empty.connect("app", "app-password") as connection:
        connection.execute("INSERT INTO items VALUES (DEFAULT, 'a', '', 1, 1)")
        assert connection.execute("SELECT count(*) FROM items").fetchone() == (1,)
        with pytest.raises(Exception, match="must be owner"):
            connection.execute("DROP TABLE items")


def test_schema_of_a_newer_version(empty: Backends, source: Path) -> None:
    """BM-10: after a rollback the older version starts on the schema of the newer one."""
    add_migration(source, "9001", HEAD, "ALTER TABLE items ADD COLUMN note text")
    assert run(empty, src=source).returncode == 0
    older = run(empty)
    assert older.returncode == 0, older.stdout
    said = json.loads(older.stdout.splitlines()[-1])
    assert said["event"] == "schema is newer than this version, left as it is"
    with empty.connect() as connection:
        assert connection.execute("SELECT note FROM items").fetchall() == []
        connection.execute("ALTER TABLE items DROP COLUMN note")
        connection.execute("UPDATE alembic_version SET version_num = %s", (HEAD,))


def test_schema_of_another_branch(empty: Backends, source: Path, tmp_path: Path) -> None:
    """FS-3: a revision that is merely unknown is no newer one, and must not pass for it."""
    add_migration(source, "9001a", HEAD, "ALTER TABLE items ADD COLUMN note text")
    assert run(empty, src=source).returncode == 0
    branch = tmp_path / "branch"
    shutil.copytree(SRC, branch, ignore=shutil.ignore_patterns("__pycache__"))
    add_migration(branch, "9001b", HEAD, "ALTER TABLE items ADD COLUMN colour text")
    other = run(empty, src=branch)
    assert other.returncode == 1, other.stdout
    assert "9001a" in other.stdout
    with empty.connect() as connection:
        connection.execute("ALTER TABLE items DROP COLUMN note")
        connection.execute("UPDATE alembic_version SET version_num = %s", (HEAD,))


def test_at_the_same_time(clean: Backends, source: Path) -> None:
    """FS-3: of two at once the second waits for the first, and then has nothing to do."""
    add_migration(source, "9001", HEAD, "SELECT pg_advisory_xact_lock(1); CREATE TABLE once ()")

    def waiting(count: int) -> bool:
        with clean.connect() as connection:
            return connection.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ).fetchone() == (count,)

    with ThreadPoolExecutor(2) as pool, clean.connect() as connection:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(1)")
            first = pool.submit(run, clean, src=source)
            wait_for("the first to be at work", lambda: waiting(1))
            second = pool.submit(run, clean, src=source)
            wait_for("the second to wait", lambda: waiting(2), 9)
        assert (first.result().returncode, second.result().returncode) == (0, 0), second.result()
        connection.execute("DROP TABLE once")
        connection.execute("UPDATE alembic_version SET version_num = %s", (HEAD,))


def test_failing(clean: Backends, broken: Path) -> None:
    """FS-3: a failing migration exits non-zero, says why, and leaves the schema as it was."""
    done = run(clean, src=broken)
    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "migration failed, schema unchanged"
    assert "colour" in last["error"]
    with clean.connect() as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
        columns = connection.execute(
            "SELECT count(*) FROM information_schema.columns WHERE column_name = 'colour'"
        ).fetchone()
    assert columns == (0,)
    assert run(clean).returncode == 0


def test_database_away(clean: Backends) -> None:
    """FS-3: the wait for the database has an end."""
    started = time.monotonic()
    done = run(
        clean,
        MIGRATION_DATABASE_URL=f"postgresql://app_owner@127.0.0.1:{free_port()}/app",
        MIGRATION_WAIT_SECONDS="1",
    )
    assert done.returncode == 1
    assert "waiting for the database" in done.stdout
    assert time.monotonic() - started < 20


def test_locked_table(clean: Backends, broken: Path) -> None:
    """FS-3: a migration gives up on a lock rather than hold up all requests behind it."""
    env = (broken / "compose_app" / "migrate.py").read_text()
    (broken / "compose_app" / "migrate.py").write_text(
        env.replace("LOCK_TIMEOUT = 10", "LOCK_TIMEOUT = 1")
    )
    with clean.connect() as connection, connection.transaction():
        connection.execute("SELECT count(*) FROM items")
        done = run(clean, src=broken)
    assert done.returncode == 1
    assert "lock timeout" in done.stdout


def test_demo_data(clean: Backends) -> None:
    """CS-15: only when asked for, and only once."""
    assert run(clean).returncode == 0
    assert names(clean) == []
    for _ in range(2):
        assert run(clean, API_SEED_DEMO_DATA="1").returncode == 0
        assert len(names(clean)) == 5


def test_wrong_password(clean: Backends, tmp_path: Path) -> None:
    """FS-3: a clear line, and the password is not in it."""
    (tmp_path / "secret").write_text("hunter2")
    done = run(
        clean,
        MIGRATION_DATABASE_PASSWORD_FILE=str(tmp_path / "secret"),
        MIGRATION_WAIT_SECONDS="1",
    )
    assert done.returncode == 1
    assert "password authentication failed" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def squawk(sql: str) -> str:
    """What the linter says against it; empty when nothing."""
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("squawk")), "--reporter=gcc"),
            *("--pg-version=17", "--assume-in-transaction"),
            # Prices, amounts and years that fit are no keys that run out.
            *("--exclude=prefer-bigint-over-int", "--exclude=prefer-bigint-over-smallint"),
            "--stdin-filepath=migrations.sql",
        ],
        input=sql,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0 or "migrations.sql" in done.stdout, done.stderr
    return done.stdout if done.returncode else ""


def test_migrations_disturb_nobody(empty: Backends) -> None:
    """FS-3: no statement blocks or breaks the version that serves meanwhile."""
    executed: list[str] = []
    engine = create_engine("postgresql+psycopg://", creator=empty.connect, poolclass=NullPool)
    event.listen(
        engine, "before_cursor_execute", lambda _connection, _cursor, sql, *_: executed.append(sql)
    )
    with engine.connect() as connection:
        migrate._set_timeouts(connection, migrate.LOCK_TIMEOUT)
        migrate.upgrade(connection)
        connection.commit()
    own = [sql for sql in executed if "alembic_version" not in sql and "SELECT" not in sql.upper()]
    assert any("CREATE TABLE items" in sql for sql in own)
    assert squawk(";\n".join(own) + ";\n") == ""


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("ALTER TABLE items ADD COLUMN note text NOT NULL", "adding-required-field"),
        ("ALTER TABLE items RENAME COLUMN name TO title", "renaming-column"),
        ("ALTER TABLE items DROP COLUMN description", "ban-drop-column"),
        ("ALTER TABLE items ALTER COLUMN quantity TYPE bigint", "changing-column-type"),
    ],
)
def test_linter_notices(statement: str, rule: str) -> None:
    """FS-3: what would break the version before, or hold a table up, is found."""
    timeouts = "SET LOCAL lock_timeout = '10s';\nSET LOCAL statement_timeout = '600s';\n"
    assert rule in squawk(f"{timeouts}{statement};\n")


def test_what_is_pending(empty: Backends, source: Path) -> None:
    """FS-3: what a release asks before it rehearses; in order, and nothing is applied."""
    add_migration(source, "9001", HEAD, "ALTER TABLE items ADD COLUMN note text")
    assert run(empty, "pending", source).stdout.split() == [*KNOWN, "9001"]
    assert run(empty).returncode == 0
    assert run(empty, "pending").stdout == ""
    assert run(empty, "pending", source).stdout.split() == ["9001"]
    assert run(empty, src=source).returncode == 0
    newer = run(empty, "pending")
    assert (newer.returncode, newer.stdout) == (0, "")
    with empty.connect() as connection:
        connection.execute("ALTER TABLE items DROP COLUMN note")
        connection.execute("UPDATE alembic_version SET version_num = %s", (HEAD,))
