"""/status and /status.json, for the operator.

The page is rendered here, charts included, and brings its own stylesheet and no script, so that
it shows under `Content-Security-Policy: default-src 'self'`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import wraps

from flask import Blueprint, Response, render_template, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from compose_app.openapi import json_response
from compose_app.status import charts, text
from compose_app.status.store import StatusStore

USER = "operator"
REFRESH = 30
"""Seconds after which the page loads itself again."""


def _same(one: str | None, other: str) -> bool:
    return hmac.compare_digest((one or "").encode(), other.encode())


def blueprint(store: StatusStore, password: str) -> Blueprint:
    """The status page.

    Args:
        store: where its values come from.
        password: what the user `operator` signs in with.
    """
    bp = Blueprint(
        "status",
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path="/status/static",
    )

    def signed_in() -> bool:
        given = request.authorization
        if given is None or given.type != "basic":
            return False
        # Both are compared, whatever comes of the first.
        return _same(given.username, USER) & _same(given.password, password)

    def guarded(view: Callable[[], Response]) -> Callable[[], Response]:
        @wraps(view)
        def check() -> Response:
            if not signed_in():
                raise Unauthorized(
                    "Sign in as the operator.",
                    www_authenticate=WWWAuthenticate("basic", {"realm": "status"}),
                )
            return view()

        return check

    @bp.after_request
    def never_stored(response: Response) -> Response:
        if request.endpoint != "status.static":
            response.headers["Cache-Control"] = "no-store"
        return response

    @bp.get("/status.json")
    @guarded
    def status_json() -> Response:
        return json_response(store.read().model_dump())

    @bp.get("/status")
    @guarded
    def page() -> Response:
        status = store.read()
        html = render_template(
            "status.html",
            status=status,
            charts=charts.charts(status.history),
            size=charts,
            text=text,
            refresh=None if request.args.get("refresh") == "off" else REFRESH,
        )
        return Response(html, content_type="text/html; charset=utf-8")

    return bp
