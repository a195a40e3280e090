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
    logging.configure(settings.log_level)
    try:
        _migrate(settings)
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        _log.error("migration failed, schema unchanged", error=str(cause).strip())
        return 1
    except Exception as error:
        _log.exception("migration failed, schema unchanged", error=str(error))
        return 1
    return 0


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for the migrations of this package on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _migrate(settings: MigrationSettings) -> None:
    dsn = conninfo(
        settings.database_url,
        settings.database_password.get_secret_value(),
        application_name="compose-app migrate",
    )
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool
    )
    with _connected(engine.connect, settings.wait_seconds) as connection:
        _set_timeouts(connection, settings.wait_seconds)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        _set_timeouts(connection, LOCK_TIMEOUT)
        config = alembic_config(connection)
        revision = _unknown_revision(config, connection)
        if revision:
            # A rollback: migrations only expand, so the version before runs on the newer schema.
            _log.warning("schema is newer than this version, left as it is", revision=revision)
            return
        command.upgrade(config, "head")
        if settings.seed_demo_data:
            demo.seed(connection)
        connection.commit()
    _log.info("schema is up to date")


def _unknown_revision(config: Config, connection: Connection) -> str | None:
    """Where the schema is, when this package has no such migration."""
    revision = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    return revision if revision not in known else None


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
