"""BM-10: `compose-app smoke`, by which a release learns whether a version fits a schema."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import SRC, Backends


def smoke(backends: Backends, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compose_app", "smoke", *words],
        env={"PATH": os.environ["PATH"], **backends.environ, "PYTHONPATH": str(SRC), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_leaves_nothing_behind(clean: Backends) -> None:
    """BM-10: a version and the schema it was made for."""
    done = smoke(clean)
    assert (done.returncode, done.stderr) == (0, "")
    with clean.connect() as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchone() == (0,)


def test_names_what_a_schema_breaks(clean: Backends) -> None:
    """BM-10: a column that the version knows is gone, or one that it does not fill is required."""
    with clean.connect() as connection:
        connection.execute("ALTER TABLE items ADD COLUMN note text NOT NULL")
    try:
        done = smoke(clean)
    finally:
        with clean.connect() as connection:
            connection.execute("ALTER TABLE items DROP COLUMN note")
    assert done.returncode == 1
    assert "POST /api/items answered 500 instead of 201" in done.stderr


def test_a_database_alone(clean: Backends) -> None:
    """FS-7: as a drill has restored it, where no Redis is; the whole test does not pass there."""
    nobody = {"REDIS_CACHE_URL": "redis://127.0.0.1:9", "REDIS_QUEUE_URL": "redis://127.0.0.1:9"}
    done = smoke(clean, "database", **nobody)
    assert (done.returncode, done.stderr) == (0, "")
    assert "GET /health answered 503 instead of 200" in smoke(clean, **nobody).stderr
