"""The application factory."""

from __future__ import annotations

from collections.abc import Sequence

from compose_app import errors, exporter, logging, scope
from compose_app.birthdays import routes as birthdays
from compose_app.birthdays.desk import MessageDesk
from compose_app.birthdays.store import UserStore
from compose_app.cache import routes as cache
from compose_app.cache.store import CacheStore
from compose_app.config import DatabaseSettings, Settings
from compose_app.console import routes as console
from compose_app.coupons import routes as coupons
from compose_app.coupons.store import CouponStore
from compose_app.db import Database
from compose_app.docs import routes as docs
from compose_app.health import routes as health
from compose_app.items import routes as items
from compose_app.items.store import ItemStore
from compose_app.openapi import MAX_BODY, Api
from compose_app.redis import Cache
from compose_app.status import routes as status
from compose_app.status.prometheus import Prometheus
from compose_app.status.store import StatusStore
from compose_app.usage import queries
from compose_app.usage import routes as usage
from compose_app.usage.queue import UsageQueue
from compose_app.usage.rollups import RollupReader


def build_app(settings: Settings) -> Api:
    """Build the application; no connection is opened before the first request needs one."""
    logging.configure(settings.log_level)
    app = Api()
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    database = Database(settings.database_url, settings.database_password.get_secret_value())
    redis = Cache(settings.redis_cache_url, settings.redis_cache_password.get_secret_value())
    queue = _queue(settings)
    caches = [redis, queue] if queue else [redis]
    app.register_api(items.blueprint(ItemStore(database)))
    app.register_api(coupons.blueprint(CouponStore(database)))
    app.register_api(birthdays.blueprint(UserStore(database)))
    app.register_api(cache.blueprint(CacheStore(redis)))
    if queue and settings.usage_events:
        app.register_api(usage.blueprint(UsageQueue(queue), settings.usage_late_days))
        # nginx asks the query service for these; here they belong to the document.
        app.register_api(queries.blueprint(RollupReader(database)))
    app.register_api(health.blueprint(database, caches))
    app.register_blueprint(docs.blueprint(app))
    if settings.operator_password:
        operator = settings.operator_password.get_secret_value()
        store = StatusStore(database, caches, Prometheus(settings.prometheus_url), settings.slot)
        app.register_blueprint(status.blueprint(store, operator))
        if queue:
            usage_queue = UsageQueue(queue)
            app.register_blueprint(
                console.blueprint(
                    app,
                    queue,
                    MessageDesk(database),
                    lambda: {"Usage events, in entries of up to a thousand": usage_queue.waiting()},
                    operator,
                )
            )
    return _finished(app, database, caches)


def build_query_app(settings: DatabaseSettings) -> Api:
    """Build the query service: usage by minute, hour and day, and nothing else."""
    logging.configure(settings.log_level)
    app = Api()
    # A page takes one index scan; a plan for any range would look into every chunk.
    database = Database(
        settings.database_url,
        settings.database_password.get_secret_value(),
        "compose-app query",
        "-c plan_cache_mode=force_custom_plan",
    )
    app.register_api(queries.blueprint(RollupReader(database)))
    app.register_api(health.blueprint(database, []))
    return _finished(app, database, [])


def _finished(app: Api, database: Database, caches: Sequence[Cache]) -> Api:
    errors.init_app(app)
    exporter.init_app(app)
    scope.init_app(app)
    app.extensions["compose_app.close"] = (database.close, *(item.close for item in caches))
    return app


def _queue(settings: Settings) -> Cache | None:
    """The Redis that evicts nothing, where there is one: sessions are kept in it."""
    if not settings.redis_queue_url or not settings.redis_queue_password:
        return None
    password = settings.redis_queue_password.get_secret_value()
    return Cache(settings.redis_queue_url, password, "redis-queue")
