"""What surrounds every request: its id, its time, its log line, its metrics."""

from __future__ import annotations

import functools
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes
from uuid import uuid4

import structlog
from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest

from compose_app import exporter, metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from prometheus_client import Counter, Histogram

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_PATH_LOGGED = 256
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = _READING | {"POST", "PUT", "PATCH", "DELETE"}

_log = structlog.get_logger("compose_app")


def request_id() -> str:
    """Id of the request at hand."""
    return str(request.environ["compose_app.request_id"])


class _Scope:
    """WSGI middleware: gives the request its id and counts it while it lasts."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        id_ = given if _SANE_ID.fullmatch(given) else uuid4().hex
        environ["compose_app.request_id"] = id_
        environ["compose_app.started"] = time.perf_counter()
        structlog.contextvars.bind_contextvars(request_id=id_)
        if environ["REQUEST_METHOD"].upper() not in _METHODS:
            # No route takes it, and as a label of metrics it would be without bound.
            environ["REQUEST_METHOD"] = "OTHER"
        metrics.ACTIVE.inc()
        try:
            answer: Iterable[bytes] = self._app(environ, start_response)
        finally:
            metrics.ACTIVE.dec()
            structlog.contextvars.clear_contextvars()
        return answer


@functools.cache
def _counters(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Look them up once: labels() would check and convert its arguments at every request."""
    labels = (method, route, status)
    return metrics.REQUESTS.labels(*labels), metrics.DURATION.labels(*labels)


def _refuse_bytes_that_are_not_text() -> None:
    """Werkzeug would replace invalid UTF-8, and two different keys would become one."""
    environ = request.environ
    try:
        environ.get("PATH_INFO", "").encode("latin-1").decode()
        query = environ.get("QUERY_STRING", "")
        if query:
            unquote_to_bytes(query.encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise BadRequest("The URL is not UTF-8 text.") from None


def init_app(app: Flask) -> None:
    """Wrap the application; to be called last, so that the hooks of all are within."""

    def finish(response: Response) -> Response:
        environ = request.environ
        seconds = time.perf_counter() - environ["compose_app.started"]
        route = exporter.path(request)
        method = request.method
        response.headers["X-Request-ID"] = environ["compose_app.request_id"]
        answered, duration = _counters(method, route, response.status_code)
        answered.inc()
        duration.observe(seconds)
        # nginx logs every request with its id; once more is worth its price, a tenth of a reading
        # request's CPU time, where something has changed or failed.
        plain = method in _READING and response.status_code < 500
        log = _log.debug if plain else _log.info
        log(
            "request",
            method=method,
            route=route,
            path=request.path[:_PATH_LOGGED],
            status=response.status_code,
            duration_ms=round(seconds * 1000, 3),
        )
        return response

    app.before_request(_refuse_bytes_that_are_not_text)
    app.after_request(finish)
    app.wsgi_app = _Scope(app.wsgi_app)  # type: ignore[method-assign]
