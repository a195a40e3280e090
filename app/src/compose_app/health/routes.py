"""/health."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Response
from flask_openapi3 import Tag

from compose_app.db import Database
from compose_app.dependencies import RETRY_AFTER
from compose_app.health import store
from compose_app.health.schemas import Health, Live
from compose_app.openapi import Blueprint, json_response, problems
from compose_app.redis import Cache


def blueprint(database: Database, redis: Sequence[Cache]) -> Blueprint:
    """Readiness and liveness."""
    api = Blueprint("health", __name__, abp_tags=[Tag(name="health")])

    @api.get(
        "/health",
        operation_id="getHealth",
        summary="Readiness",
        description=(
            "`redis` is `ok` only when both instances answer: the cache, and the one that keeps "
            "sessions and queues."
        ),
        responses={
            200: Health,
            503: {
                "description": "The database or one of the two Redis instances does not answer.",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Health"}}
                },
                "headers": {
                    "Retry-After": {
                        "description": "Seconds to wait.",
                        "schema": {"type": "integer", "minimum": 0},
                    }
                },
            },
            **problems(),
        },
    )
    def get_health() -> Response:
        redis_state = store.redis_state(redis)
        database_state = store.database_state(database)
        ready = redis_state == database_state == "ok"
        return json_response(
            {
                "status": "ok" if ready else "unavailable",
                "database": database_state,
                "redis": redis_state,
            },
            200 if ready else 503,
            {"Cache-Control": "no-store"} | ({} if ready else {"Retry-After": str(RETRY_AFTER)}),
        )

    @api.get(
        "/health/live",
        operation_id="getLiveness",
        summary="Liveness",
        responses={200: Live, **problems()},
    )
    def get_liveness() -> Response:
        """Answers as long as the process does, whatever becomes of its dependencies."""
        return json_response({"status": "ok"}, headers={"Cache-Control": "no-store"})

    return api
