"""/console, for the operator. Every page works without a script, and brings none."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from flask import (
    Blueprint,
    Flask,
    Response,
    current_app,
    flash,
    g,
    redirect,
    render_template,
    request,
    session,
)
from flask_wtf.csrf import CSRFProtect
from werkzeug.exceptions import HTTPException

from compose_app.console import charts
from compose_app.console.api import Answer, InnerApi
from compose_app.console.session import ConsoleSessions
from compose_app.dependencies import RETRY_AFTER, Unavailable
from compose_app.fields import MAX_ID
from compose_app.redis import Cache

ATTEMPTS_A_MINUTE = 10
"""Wrong passwords after which none of that client's is looked at for the minute."""
MESSAGES = 50
"""Birthday messages that are listed, of each kind."""
_PRICE = re.compile(r"(\d{1,12})(?:[.,](\d{1,2}))?", re.ASCII)


def _digest(purpose: bytes, password: str) -> str:
    return hmac.new(password.encode(), purpose, hashlib.sha256).hexdigest()


def _page(name: str, status: int = 200, **values: Any) -> Response:
    html = render_template(f"console/{name}.html", **values)
    headers = {"Retry-After": str(RETRY_AFTER)} if status == 503 else None
    return Response(html, status, headers, content_type="text/html; charset=utf-8")


def _cents(price: str) -> object:
    """A price such as 24.99 in cents; as it is where it is none, for the API to refuse."""
    parts = _PRICE.fullmatch(price.strip())
    return int(parts[1]) * 100 + int((parts[2] or "").ljust(2, "0")) if parts else price


def _whole(number: str) -> object:
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 20 else number


class Desk(Protocol):
    """What the operator does about birthday messages; no client of the API may."""

    def depths(self) -> dict[str, int]: ...
    def coming(self, limit: int) -> list[dict[str, Any]]: ...
    def dead(self, limit: int) -> list[dict[str, Any]]: ...
    def replay(self, message_id: int) -> bool: ...


def blueprint(
    app: Flask, queue: Cache, desk: Desk, depths: Callable[[], dict[str, int]], password: str
) -> Blueprint:
    """The console.

    Args:
        app: whose API it shows.
        desk: of birthday messages.
        depths: how much waits in other queues, in words.
        queue: Redis in which sessions are kept and wrong passwords are counted.
        password: what the operator signs in with; another one ends all sessions.
    """
    bp = Blueprint(
        "console",
        __name__,
        url_prefix="/console",
        template_folder="templates",
        static_folder="static",
        static_url_path="/static",
    )
    api = InnerApi(app)
    operator = _digest(b"console session", password)
    sessions = ConsoleSessions(app, queue.client)
    app.session_interface = sessions
    app.config.update(
        WTF_CSRF_SECRET_KEY=_digest(b"console form", password),
        WTF_CSRF_CHECK_DEFAULT=False,
        WTF_CSRF_TIME_LIMIT=None,
        # Pages ask for no Referer to be sent, so its absence says nothing.
        WTF_CSRF_SSL_STRICT=False,
    )
    csrf = CSRFProtect(app)

    @bp.before_request
    def guard() -> Response | None:
        if request.endpoint == "console.static":
            return None
        if "session_lost" in g:
            raise Unavailable("Redis for sessions")
        if request.method == "POST":
            csrf.protect()
        if request.endpoint != "console.login" and session.get("operator") != operator:
            return _see("/console/login")
        return None

    @bp.after_request
    def never_stored(response: Response) -> Response:
        if request.endpoint != "console.static":
            response.headers["Cache-Control"] = "no-store"
        return response

    @bp.errorhandler(Unavailable)
    def on_unavailable(error: Unavailable) -> Response:
        faults = [f"The {error.name} does not answer at the moment. Try again."]
        return _page("error", 503, title="Not available", faults=faults)

    @bp.errorhandler(HTTPException)
    def on_http(error: HTTPException) -> Response:
        faults = [error.description or ""]
        return _page("error", error.code or 500, title=error.name, faults=faults)

    @bp.route("/login", methods=["GET", "POST"])
    def login() -> Response:
        if request.method == "GET":
            return _page("login")
        # nginx sets it, and nobody else reaches the application's socket.
        client = request.headers.get("X-Real-IP", "")[:64]
        minute = f"console:attempts:{client}:{int(time.time() // 60)}"
        (attempts,) = queue.execute(("GET", minute))
        if int(attempts or 0) >= ATTEMPTS_A_MINUTE:
            response = _page("login", 429, faults=["Too many wrong passwords. Wait a minute."])
            response.headers["Retry-After"] = "60"
            return response
        given = request.form.get("password", "")
        if not hmac.compare_digest(given.encode(), password.encode()):
            queue.execute(("INCR", minute), ("EXPIRE", minute, 120))
            return _page("login", 403, faults=["This is not the operator's password."])
        # Whoever knew the id before knows it no more.
        session.clear()
        session["operator"] = operator
        sessions.regenerate(session)  # type: ignore[arg-type]  # a proxy of it
        return _see("/console")

    @bp.post("/logout")
    def logout() -> Response:
        session.clear()
        return _see("/console/login")

    @bp.get("")
    def start() -> Response:
        return _see("/console/items")

    def listed(name: str, path: str, answer: Answer | None = None) -> Response:
        """A list, and above it what the operator has just tried to add, if that was refused."""
        cursor = request.args.get("cursor", "")
        found = api.call("GET", f"{path}?limit=20{f'&cursor={quote(cursor)}' if cursor else ''}")
        faults = answer.faults if answer else [] if found.good else found.faults
        status = answer.status if answer else found.status
        return _page(name, status, page=found.document, faults=faults, given=request.form)

    def done(name: str, path: str, answer: Answer, said: str) -> Response:
        if not answer.good:
            return listed(name, path, answer)
        flash(said)
        return _see(f"/console/{name}")

    @bp.get("/items")
    def items() -> Response:
        return listed("items", "/api/items")

    @bp.post("/items")
    def create_item() -> Response:
        form = request.form
        item = {
            "name": form.get("name", ""),
            "description": form.get("description", ""),
            "price_cents": _cents(form.get("price", "")),
            "quantity": _whole(form.get("quantity", "")),
        }
        answer = api.call("POST", "/api/items", item)
        return done("items", "/api/items", answer, f"{item['name']} is there.")

    @bp.post("/items/<id>/delete")
    def delete_item(id: str) -> Response:
        answer = api.call("DELETE", f"/api/items/{quote(id, safe='')}")
        return done("items", "/api/items", answer, f"Item {id} is gone.")

    @bp.get("/coupons")
    def coupons() -> Response:
        return listed("coupons", "/api/coupons")

    @bp.post("/coupons")
    def create_coupon() -> Response:
        name = request.form.get("name", "")
        coupon = {"name": name, "amount": _whole(request.form.get("amount", ""))}
        answer = api.call("POST", "/api/coupons", coupon)
        return done("coupons", "/api/coupons", answer, f"{name} is there.")

    @bp.post("/coupons/claim")
    def claim_coupon() -> Response:
        user, name = request.form.get("user_id", ""), request.form.get("coupon_name", "")
        answer = api.call("POST", "/api/coupons/claim", {"user_id": user, "coupon_name": name})
        return done("coupons", "/api/coupons", answer, f"{user} has claimed {name}.")

    @bp.get("/coupons/<name>")
    def coupon(name: str) -> Response:
        cursor = request.args.get("cursor", "")
        more = f"?cursor={quote(cursor)}" if cursor else ""
        found = api.call("GET", f"/api/coupons/{quote(name, safe='')}{more}")
        if not found.good:
            return _page("error", found.status, title="Coupon", faults=found.faults)
        return _page("coupon", coupon=found.document)

    @bp.get("/usage")
    def usage() -> Response:
        tenant, bucket = request.args.get("tenant", ""), request.args.get("bucket", "hour")
        shown: dict[str, Any] = {"tenant": tenant, "bucket": bucket, "spans": charts.SPANS}
        if not tenant or bucket not in charts.SPANS:
            return _page("usage", charts=[], **shown)
        start = charts.since(bucket, datetime.now(UTC))
        asked = {"tenant": tenant, "bucket": bucket, "from": start.isoformat(), "limit": 1000}
        found = api.call("GET", f"/api/usage?{urlencode(asked)}")
        return _page(
            "usage",
            found.status,
            charts=charts.charts(found.document.get("buckets", []), bucket, start),
            more=found.document.get("next_cursor"),
            faults=[] if found.good else found.faults,
            width=charts.WIDTH,
            height=charts.HEIGHT,
            **shown,
        )

    def messages(status: int = 200, faults: Sequence[str] = ()) -> Response:
        coming, dead = desk.coming(MESSAGES), desk.dead(MESSAGES)
        return _page(
            "birthdays", status, coming=coming, dead=dead, faults=faults, given=request.form
        )

    @bp.get("/birthdays")
    def birthdays() -> Response:
        return messages()

    @bp.post("/birthdays")
    def create_user() -> Response:
        names = ("first_name", "last_name", "birthday", "time_zone", "email")
        answer = api.call("POST", "/api/user", {n: request.form.get(n, "") for n in names})
        if not answer.good:
            return messages(answer.status, answer.faults)
        due = answer.document["next_message_at"]
        flash(f"{request.form['first_name']} is there; the next message is due at {due}.")
        return _see("/console/birthdays")

    @bp.post("/birthdays/<int:id>/replay")
    def replay_message(id: int) -> Response:
        if id > MAX_ID or not desk.replay(id):
            return messages(404, [f"Message {id} was not given up, or is gone."])
        flash(f"Message {id} will be tried once more.")
        return _see("/console/birthdays")

    @bp.get("/queues")
    def queues() -> Response:
        return _page("queues", depths={**depths(), **desk.depths()})

    return bp


def _see(path: str) -> Response:
    return current_app.make_response(redirect(path, 303))
