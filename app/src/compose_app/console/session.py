"""Sessions of the console, kept in the Redis that evicts nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import orjson
import redis
import structlog
from flask import Flask, Request, Response, g
from flask_session.base import Serializer, ServerSideSession
from flask_session.redis.redis import RedisSessionInterface

PREFIX = "/console"
LIFETIME = timedelta(hours=8)
"""How long a session lasts that nobody uses."""
ANONYMOUS_LIFETIME = timedelta(minutes=10)
"""The same before anyone has signed in: whoever asks for the form gets one."""

_log = structlog.get_logger("compose_app")


class _Json(Serializer):
    """Flask-Session's own would take a pickle as well."""

    def encode(self, session: ServerSideSession) -> bytes:
        return orjson.dumps(dict(session))

    def decode(self, serialized_data: bytes) -> dict[str, Any]:
        try:
            found = orjson.loads(serialized_data)
        except orjson.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}


class ConsoleSessions(RedisSessionInterface):
    """Server-side sessions, for requests to the console alone.

    Where Redis does not answer, `g.session_lost` says so: the session is empty and not kept.
    """

    def __init__(self, app: Flask, client: redis.Redis) -> None:
        app.config.update(
            SESSION_COOKIE_NAME="console",
            SESSION_COOKIE_PATH=PREFIX,
            SESSION_COOKIE_SECURE=True,
            SESSION_COOKIE_HTTPONLY=True,
            SESSION_COOKIE_SAMESITE="Strict",
            SESSION_REFRESH_EACH_REQUEST=True,
            PERMANENT_SESSION_LIFETIME=LIFETIME,
        )
        super().__init__(app, client, key_prefix="console:session:", permanent=False)
        self.serializer = _Json()  # type: ignore[assignment]

    def open_session(  # type: ignore[override]  # Flask allows None
        self, app: Flask, request: Request
    ) -> ServerSideSession | None:
        """The session of a request; None, which is Flask's null session, outside of the console."""
        if not request.path.startswith(PREFIX):
            return None
        try:
            session: ServerSideSession = super().open_session(app, request)
        except redis.RedisError as error:
            return self._lost(error)
        return session

    def save_session(  # type: ignore[override]  # there is no other kind
        self, app: Flask, session: ServerSideSession, response: Response
    ) -> None:
        """Keep what the request has changed; an answer that relies on it becomes a 503."""
        if "session_lost" in g:
            return
        try:
            super().save_session(app, session, response)
        except redis.RedisError as error:
            self._lost(error)
            response.status_code = 503
            response.headers["Retry-After"] = "2"
            response.headers.pop("Location", None)
            response.set_data("Sessions cannot be kept at the moment. Try again.")
            response.content_type = "text/plain; charset=utf-8"

    def _lost(self, error: redis.RedisError) -> ServerSideSession:
        _log.warning("sessions lost", error=str(error))
        g.session_lost = True
        return self.session_class()

    def _upsert_session(
        self, session_lifetime: timedelta, session: ServerSideSession, store_id: str
    ) -> None:
        lifetime = session_lifetime if session.get("operator") else ANONYMOUS_LIFETIME
        super()._upsert_session(lifetime, session, store_id)
