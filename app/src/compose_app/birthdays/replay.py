"""`compose-app replay-message`: has messages that could not be sent tried once more."""

from __future__ import annotations

import psycopg
import structlog

from compose_app import logging
from compose_app.birthdays.messages import MessageStore
from compose_app.birthdays.store import utc_now
from compose_app.config import DatabaseSettings

_log = structlog.get_logger("compose_app.replay")


def main(settings: DatabaseSettings, message_id: int | None) -> int:
    """Plan a dead message anew, or all of them.

    Returns:
        0, or 1 when there was none or the database does not answer.
    """
    logging.configure(settings.log_level)
    store = MessageStore(
        settings.database_url, settings.database_password.get_secret_value(), "compose-app replay"
    )
    try:
        replayed = store.replay(utc_now(), message_id)
    except psycopg.Error as error:
        _log.error("not replayed", error=str(error).strip())
        return 1
    finally:
        store.close()
    if not replayed:
        _log.error("no such message is dead")
        return 1
    _log.info("messages will be tried again", messages=replayed)
    return 0
