"""The application factory."""

from __future__ import annotations

from compose_app import errors, exporter, logging, scope
from compose_app.birthdays import routes as birthdays
from compose_app.birthdays.store import UserStore
from compose_app.cache import routes as cache
from compose_app.cache.store import CacheStore
from compose_app.config import Settings
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


def build_app(settings: Settings) -> Api:
    """Build the application; no connection is opened before the first request needs one."""
    logging.configure(settings.log_level)
    app = Api()
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    database = Database(settings.database_url, settings.database_password.get_secret_value())
    redis = Cache(settings.redis_cache_url, settings.redis_cache_password.get_secret_value())
    caches = [redis]
    if settings.redis_queue_url and settings.redis_queue_password:
        password = settings.redis_queue_password.get_secret_value()
        # Nothing is queued yet: it is asked for its health alone.
        caches.append(Cache(settings.redis_queue_url, password, "redis-queue"))
    app.register_api(items.blueprint(ItemStore(database)))
    app.register_api(coupons.blueprint(CouponStore(database)))
    app.register_api(birthdays.blueprint(UserStore(database)))
    app.register_api(cache.blueprint(CacheStore(redis)))
    app.register_api(health.blueprint(database, caches))
    app.register_blueprint(docs.blueprint(app))
    if settings.operator_password:
        store = StatusStore(database, caches, Prometheus(settings.prometheus_url), settings.slot)
        app.register_blueprint(
            status.blueprint(store, settings.operator_password.get_secret_value())
        )
    errors.init_app(app)
    exporter.init_app(app)
    scope.init_app(app)
    app.extensions["compose_app.close"] = (database.close, *(item.close for item in caches))
    return app
