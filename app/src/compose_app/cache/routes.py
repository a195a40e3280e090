"""/api/cache."""

from __future__ import annotations

from flask import Response
from flask_openapi3 import Tag

from compose_app import errors
from compose_app.cache.schemas import CacheEntry, CacheIn, CachePath
from compose_app.cache.store import CacheStore
from compose_app.errors import ProblemError
from compose_app.openapi import Blueprint, json_response, problems


def blueprint(store: CacheStore) -> Blueprint:
    """The operations on cached values."""
    api = Blueprint("cache", __name__, abp_tags=[Tag(name="cache")])

    @api.get(
        "/api/cache/<key>",
        operation_id="getCached",
        summary="Get a cached value",
        responses={
            200: CacheEntry,
            **problems(errors.KEY_NOT_FOUND, errors.INVALID, errors.UNAVAILABLE),
        },
    )
    def get_cached(path: CachePath) -> Response:
        found = store.get(path.key)
        if found is None:
            raise ProblemError(errors.KEY_NOT_FOUND, f"The cache has no key {path.key}.")
        value, ttl = found
        return json_response({"key": path.key, "value": value, "ttl": ttl})

    @api.put(
        "/api/cache/<key>",
        operation_id="putCached",
        summary="Cache a value for some seconds",
        responses={
            200: CacheEntry,
            **problems(*errors.OF_A_BODY),
        },
    )
    def put_cached(path: CachePath, body: CacheIn) -> Response:
        store.put(path.key, body.value, body.ttl)
        return json_response({"key": path.key, "value": body.value, "ttl": body.ttl})

    return api
