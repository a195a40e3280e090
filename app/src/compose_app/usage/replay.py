"""`compose-app replay`: queue once more what was set aside, after its cause is gone."""

from __future__ import annotations

import orjson
import psycopg
import structlog

from compose_app import logging
from compose_app.config import ProcessorSettings
from compose_app.dependencies import Unavailable
from compose_app.redis import Cache
from compose_app.usage.queue import UsageQueue, encode
from compose_app.usage.store import WHOLE, UsageStore

_log = structlog.get_logger("compose_app.replay")


def main(settings: ProcessorSettings, number: int | None) -> int:
    """Queue what was set aside, or one of it, again; what is still unfit is set aside once more.

    Returns:
        0, or 1 when there is no such number or a server does not answer: then nothing is lost.
    """
    logging.configure(settings.log_level)
    store = UsageStore(settings.database_url, settings.database_password.get_secret_value())
    password = settings.redis_queue_password.get_secret_value()
    queue = UsageQueue(Cache(settings.redis_queue_url, password, "redis-queue"))
    try:
        rows = store.rejected(number)
        if number is not None and not rows:
            _log.error("nothing was set aside under this number", number=number)
            return 1
        for row, place, payload in rows:
            # Queued first: after a failure in between it is there twice, and counts once.
            queue.put([payload if place == WHOLE else encode([orjson.loads(payload)])])
            store.forget(row)
    except (psycopg.Error, Unavailable) as error:
        _log.error("not replayed", error=str(error).strip())
        return 1
    finally:
        store.close()
    _log.info("replayed", entries=len(rows))
    return 0
