#!/usr/bin/python
"""Try migrations, and the version that serves, on a copy of the database."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Callable

    Done = subprocess.CompletedProcess[str]

DOCUMENTATION = r"""
module: rehearse_migrations
short_description: Try migrations on a copy of the database before they touch it
version_added: "1.0.0"
author: compose-stack
description:
  - Asks the new version which migrations are missing, by its command C(pending). When there are
    none, that is all.
  - Copies the database on its own server, lets the new version migrate the copy, and lets the
    version that serves run its command C(smoke) on the result. The copy is removed again, whatever
    comes of it.
  - Fails with what the failing command printed. The database itself is only read.
options:
  project_directory:
    description: Directory of the compose project.
    type: path
    required: true
  migrate:
    description: Service that migrates, as the new version has it.
    type: str
    required: true
  serving:
    description: Service that serves now.
    type: str
    required: true
  server:
    description: Service of the PostgreSQL server, whose superuser enters by its socket.
    type: str
    default: postgres
  database:
    description: The database.
    type: str
    required: true
  owner:
    description: Role that owns the database.
    type: str
    required: true
  role:
    description: Role that the application runs as.
    type: str
    required: true
  copy:
    description: Name of the copy.
    type: str
    default: rehearsal
  environment:
    description: Variables by which both services find the copy.
    type: dict
    required: true
  max_mb:
    description: A database beyond this size (MiB) is copied without its rows.
    type: int
    default: 1024
  timeout:
    description: Seconds that a command may take.
    type: int
    default: 900
attributes:
  check_mode:
    support: none
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Rehearse what the new version would do to the schema
  rehearse_migrations:
    project_directory: /opt/stack
    migrate: migrate-green
    serving: api-blue
    database: app
    owner: app_owner
    role: app
    environment:
      MIGRATION_DATABASE_URL: postgresql://app_owner@postgres:5432/rehearsal
      DATABASE_URL: postgresql://app@postgres:5432/rehearsal
"""

RETURN = r"""
rehearsal:
  description: What was tried.
  returned: when any migrations are missing
  type: dict
  contains:
    pending:
      description: The revisions, in order.
      type: list
      elements: str
    rows:
      description: Whether the copy had rows.
      type: bool
    seconds:
      description: How long copying, migrating and the smoke test took.
      type: dict
"""

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "project_directory": {"type": "path", "required": True},
    "migrate": {"type": "str", "required": True},
    "serving": {"type": "str", "required": True},
    "server": {"type": "str", "default": "postgres"},
    "database": {"type": "str", "required": True},
    "owner": {"type": "str", "required": True},
    "role": {"type": "str", "required": True},
    "copy": {"type": "str", "default": "rehearsal"},
    "environment": {"type": "dict", "required": True},
    "max_mb": {"type": "int", "default": 1024},
    "timeout": {"type": "int", "default": 900},
}

# As TimescaleDB's documentation restores a logical backup.
COPY = """
set -eu
export PGHOST=/run/postgresql PGUSER=postgres
query() {
  psql -XAtq --set=ON_ERROR_STOP=1 --set=copy="$COPY" --set=owner="$OWNER" --set=role="$ROLE" "$@"
}
query --dbname=postgres <<'SQL'
DROP DATABASE IF EXISTS :"copy" WITH (FORCE);
CREATE DATABASE :"copy" OWNER :"owner" TEMPLATE template0;
REVOKE ALL ON DATABASE :"copy" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"copy" TO :"role";
SQL
query --dbname="$COPY" --command='CREATE EXTENSION timescaledb' \
  --command='SELECT timescaledb_pre_restore()'
pg_dump --format=custom "$@" "$DATABASE" | pg_restore --dbname="$COPY" --exit-on-error
query --dbname="$COPY" --command='SELECT timescaledb_post_restore()'
"""

# Of what has no rows in the copy. The catalogue of TimescaleDB and the schema's revision are kept.
EMPTY = """
SELECT format('--exclude-table-data=%I.%I', schemaname, tablename) FROM pg_tables
WHERE schemaname = 'public' AND tablename <> 'alembic_version'
"""
LONGEST = 400
PSQL = ["psql", "--host=/run/postgresql", "--username=postgres", "-XAtq"]
CHUNKS = "--exclude-table-data=_timescaledb_internal.*hyper_*"


class Rehearsal:
    """One rehearsal, from the question what is missing to the removal of the copy."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.seconds: dict[str, float] = {}
        self.pending: list[str] = []

    def run(self) -> None:
        """Rehearse what is missing, or fail with the reason."""
        migrate, serving = self.params["migrate"], self.params["serving"]
        asked = self.service(migrate, "pending", on_copy=False)
        if unknown(asked):
            self.module.warn(f"{migrate} cannot say which migrations are missing: none was tried.")
            self.module.exit_json(changed=False)
        if asked.returncode:
            self.fail("The new version cannot tell which migrations are missing", asked)
        self.pending = asked.stdout.split()
        if not self.pending:
            self.module.exit_json(changed=False)
        try:
            rows = self.copy()
            done = self.timed("migrate", lambda: self.service(migrate, "migrate"))
            if done.returncode:
                self.fail(
                    f"The migration to {self.pending[-1]} fails on a copy of the database", done
                )
            done = self.timed("smoke", lambda: self.service(serving, "smoke"))
            if unknown(done):
                self.module.warn(f"{serving} has no smoke test: the migration alone was tried.")
            elif done.returncode:
                self.fail(
                    f"The version that serves ({serving}) does not work on a copy of the database "
                    f"that was migrated to {self.pending[-1]}. A migration may only add: take away "
                    "in a later release what no version uses any more",
                    done,
                )
        finally:
            self.drop()
        rehearsal = {"pending": self.pending, "rows": rows, "seconds": self.seconds}
        self.module.exit_json(changed=False, rehearsal=rehearsal)

    def copy(self) -> bool:
        """Make the copy; tell whether it has the rows."""
        database = self.params["database"]
        size = self.query(f"SELECT pg_database_size('{database}') / 1048576")
        rows = bool(int(size) <= self.params["max_mb"])
        without = [] if rows else [*self.query(EMPTY).split(), CHUNKS]
        done = self.timed("copy", lambda: self.on_server(["sh", "-c", COPY, "sh", *without]))
        if done.returncode:
            self.fail("The database could not be copied", done)
        return rows

    def drop(self) -> None:
        """Remove the copy."""
        sql = f'DROP DATABASE IF EXISTS "{self.params["copy"]}" WITH (FORCE)'
        done = self.on_server([*PSQL, "--dbname=postgres", f"--command={sql}"])
        if done.returncode:
            self.module.warn(f"The copy of the database could not be removed: {said(done)}")

    def query(self, sql: str) -> str:
        done = self.on_server([*PSQL, f"--dbname={self.params['database']}", f"--command={sql}"])
        if done.returncode:
            self.fail("The database could not be asked", done)
        return done.stdout

    def on_server(self, command: list[str]) -> Done:
        names = ("database", "copy", "owner", "role")
        given = (f"--env={name.upper()}={self.params[name]}" for name in names)
        return self.compose("exec", "-T", *given, self.params["server"], *command)

    def service(self, service: str, command: str, *, on_copy: bool = True) -> Done:
        """Run a command of the application as a service would, once."""
        given = self.params["environment"] if on_copy else {}
        environment = (f"--env={name}={value}" for name, value in given.items())
        run = ("run", "--rm", "--no-deps", "--quiet-pull", "-T")
        return self.compose(*run, *environment, service, "compose-app", command)

    def compose(self, *words: str) -> Done:
        command = ["docker", "compose", "--project-directory", self.params["project_directory"]]
        command += words
        try:
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=self.params["timeout"],
                check=False,
            )
        except subprocess.TimeoutExpired:
            why = f"it took longer than {self.params['timeout']} s"
            return subprocess.CompletedProcess(command, 124, "", why)

    def timed(self, what: str, work: Callable[[], Done]) -> Done:
        began = time.monotonic()
        done = work()
        self.seconds[what] = round(time.monotonic() - began, 1)
        return done

    def fail(self, reason: str, done: Done) -> NoReturn:
        self.module.fail_json(msg=f"{reason}:\n{said(done)}\nThe database itself is as it was.")
        raise AssertionError  # exit_json and fail_json do not return


def unknown(done: Done) -> bool:
    """Whether a version is older than the command."""
    return done.returncode == 2 and "usage:" in done.stderr


def said(done: Done) -> str:
    """The last lines that a command printed, and of a long one the end: a traceback's point."""
    lines = (done.stdout + done.stderr).strip().splitlines()[-20:]
    short = (line if len(line) <= LONGEST else f"... {line[-LONGEST:]}" for line in lines)
    return "\n".join(short) or f"exit code {done.returncode}"


def main() -> None:
    """Run the module."""
    Rehearsal(AnsibleModule(argument_spec=ARGUMENT_SPEC)).run()


if __name__ == "__main__":
    main()
