"""The console command `compose-app`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = """usage: compose-app COMMAND

check-config   check the environment and name every problem
migrate        bring the database schema up to date; with API_SEED_DEMO_DATA=1 add demo items
pending        print the revisions that `migrate` would apply, a line each, and apply none
processor      move usage events from the queue into the database, until told to stop
aggregator     keep the roll-ups of usage events right, and drop what is old, until told to stop
replay ID      queue usage events that were set aside once more; ID is a number, or `all`
scheduler      plan birthday messages and queue those that are due, until told to stop
worker         send birthday messages through the email service, until told to stop
replay-message ID
               have a birthday message that could not be sent tried again; ID is a number, or `all`
mailbox        stand in for an email service, for development and tests
smoke [database]
               do what a client does, on the database and the Redis of the environment, or on the
               database alone
healthcheck    ask this container's own application for its health
"""


def main() -> int:
    """Run a command; 0 is success, 1 failure, 2 a wrong call or configuration."""
    match sys.argv[1:]:
        case ["healthcheck"]:
            from compose_app import healthcheck

            return healthcheck.main()
        case ["check-config"]:
            return _configured(_check_config)
        case ["migrate"]:
            return _configured(_migrate)
        case ["pending"]:
            return _configured(_pending)
        case ["processor"]:
            return _configured(_processor)
        case ["aggregator"]:
            return _configured(_aggregator)
        case ["replay", number] if number == "all" or number.isdecimal():
            return _configured(lambda: _replay(number))
        case ["scheduler"]:
            return _configured(_scheduler)
        case ["worker"]:
            return _configured(_worker)
        case ["replay-message", number] if number == "all" or number.isdecimal():
            return _configured(lambda: _replay_message(number))
        case ["mailbox"]:
            from compose_app import mailbox

            return mailbox.main()
        case ["smoke"]:
            return _configured(lambda: _smoke(database_alone=False))
        case ["smoke", "database"]:
            return _configured(lambda: _smoke(database_alone=True))
        case ["-h" | "--help"]:
            print(USAGE, end="")
            return 0
        case _:
            print(USAGE, end="", file=sys.stderr)
            return 2


def _configured(command: Callable[[], int]) -> int:
    from compose_app.config import ConfigError

    try:
        return command()
    except ConfigError as error:
        for problem in error.problems:
            print(f"compose-app: {problem}", file=sys.stderr)
        return 2


def _check_config() -> int:
    from compose_app import config

    config.check()
    print("configuration is complete")
    return 0


def _migrate() -> int:
    from compose_app import migrate
    from compose_app.config import MigrationSettings

    return migrate.main(MigrationSettings.from_environ())


def _pending() -> int:
    from compose_app import migrate
    from compose_app.config import MigrationSettings

    return migrate.print_pending(MigrationSettings.from_environ())


def _smoke(*, database_alone: bool) -> int:
    from compose_app import smoke

    return smoke.main(database_alone=database_alone)


def _processor() -> int:
    from compose_app.config import ProcessorSettings
    from compose_app.usage import processor

    return processor.main(ProcessorSettings.from_environ())


def _aggregator() -> int:
    from compose_app.config import AggregatorSettings
    from compose_app.usage import aggregator

    return aggregator.main(AggregatorSettings.from_environ())


def _replay(number: str) -> int:
    from compose_app.config import ProcessorSettings
    from compose_app.usage import replay

    return replay.main(ProcessorSettings.from_environ(), None if number == "all" else int(number))


def _scheduler() -> int:
    from compose_app.birthdays import scheduler
    from compose_app.config import SchedulerSettings

    return scheduler.main(SchedulerSettings.from_environ())


def _worker() -> int:
    from compose_app.birthdays import worker
    from compose_app.config import WorkerSettings

    return worker.main(WorkerSettings.from_environ())


def _replay_message(number: str) -> int:
    from compose_app.birthdays import replay
    from compose_app.config import DatabaseSettings

    return replay.main(DatabaseSettings.from_environ(), None if number == "all" else int(number))
