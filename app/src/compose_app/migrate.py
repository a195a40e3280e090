"""`compose-app migrate`: bring the schema up to date, one process at a time, all or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from compose_app import demo, logging
from compose_app.config import MigrationSettings
from compose_app.db import conninfo

_LOCK = 0x636F6D706F7365
"""Key of the advisory lock that migrations hold."""
LOCK_TIMEOUT = 10
"""Seconds a statement waits for a table's lock: those that wait behind it are live requests."""
STATEMENT_TIMEOUT = 600
"""Seconds a statement may take."""
RETRY_INTERVAL = 0.5
"""Seconds between attempts to connect."""

_log = structlog.get_logger("compose_app.migrate")


def main(settings: MigrationSettings) -> int:
    """Migrate, then add demo items if asked to; safe to run again, and at the same time.

    Returns:
        0, or 1 when the database cannot be reached or a migration fails; the schema is then as
        it was before.
    """
    return _reported(lambda: _migrate(settings), settings, "migration failed, schema unchanged")


def print_pending(settings: MigrationSettings) -> int:
    """Print the revisions that are missing, in order, a line each.

    Returns:
        0, or 1 when the database cannot be reached.
    """
    return _reported(lambda: _print_pending(settings), settings, "cannot tell what is missing")


def _reported(work: Callable[[], None], settings: MigrationSettings, failure: str) -> int:
    logging.configure(settings.log_level)
    try:
        work()
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        _log.error(failure, error=str(cause).strip())
        return 1
    except Exception as error:
        _log.exception(failure, error=str(error))
        return 1
    return 0


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for the migrations of this package on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _print_pending(settings: MigrationSettings) -> None:
    with _connection(settings) as connection:
        if _is_ahead(connection):
            return
        current = MigrationContext.configure(connection).get_current_revision()
        scripts = ScriptDirectory.from_config(alembic_config(connection))
        missing = [item.revision for item in scripts.iterate_revisions("heads", current or "base")]
    for revision in reversed(missing):
        print(revision)


def _connection(settings: MigrationSettings) -> Connection:
    dsn = conninfo(
        settings.database_url,
        settings.database_password.get_secret_value(),
        application_name="compose-app migrate",
    )
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool
    )
    return _connected(engine.connect, settings.wait_seconds)


def _migrate(settings: MigrationSettings) -> None:
    with _connection(settings) as connection:
        _set_timeouts(connection, settings.wait_seconds)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        _set_timeouts(connection, LOCK_TIMEOUT)
        if _is_ahead(connection):
            # A rollback: migrations only expand, so the version before runs on the newer schema.
            _log.warning("schema is newer than this version, left as it is")
            return
        upgrade(connection)
        if settings.seed_demo_data:
            demo.seed(connection)
        connection.commit()
    _log.info("schema is up to date")


def upgrade(connection: Connection) -> None:
    """Apply what is missing, and note which revisions the schema holds.

    Alembic keeps the last one alone. To an older version that is just a name it does not know: the
    list tells a newer schema from another branch's, or another application's.
    """
    command.upgrade(alembic_config(connection), "head")
    held = " ".join(sorted(_own_revisions(connection)))
    connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{held}'"))


def _own_revisions(connection: Connection) -> set[str]:
    scripts = ScriptDirectory.from_config(alembic_config(connection))
    return {script.revision for script in scripts.walk_revisions()}


def _is_ahead(connection: Connection) -> bool:
    """Whether the schema holds all of this package's revisions, and others beside."""
    revision = MigrationContext.configure(connection).get_current_revision()
    own = _own_revisions(connection)
    if revision is None or revision in own:
        return False
    held = connection.scalar(text("SELECT obj_description('alembic_version'::regclass)"))
    return own <= set((held or "").split())


def _set_timeouts(connection: Connection, lock_seconds: int) -> None:
    connection.execute(text(f"SET LOCAL lock_timeout = '{lock_seconds}s'"))
    connection.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}s'"))


def _connected(connect: Callable[[], Connection], wait_seconds: int) -> Connection:
    deadline = time.monotonic() + wait_seconds
    waiting = False
    while True:
        try:
            return connect()
        except OperationalError as error:
            if time.monotonic() + RETRY_INTERVAL > deadline:
                raise
            if not waiting:
                waiting = True
                _log.info(
                    "waiting for the database", seconds=wait_seconds, error=str(error.orig).strip()
                )
            time.sleep(RETRY_INTERVAL)
