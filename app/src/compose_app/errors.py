"""Errors as RFC 9457 problem documents, every one of them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
import structlog
from flask import Flask, Response, request
from pydantic import BaseModel, ConfigDict, Field
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from compose_app.dependencies import RETRY_AFTER, Unavailable
from compose_app.scope import request_id

MEDIA_TYPE = "application/problem+json"

_log = structlog.get_logger("compose_app")


class FieldError(BaseModel):
    """One thing wrong with a request."""

    location: list[str | int] = Field(
        description="Where: body, path or query, then the names and indexes that lead to the value."
    )
    message: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "/docs#problem-item-not-found",
                    "title": "Item not found",
                    "status": 404,
                    "detail": "There is no item 42.",
                    "instance": "/api/items/42",
                    "request_id": "3f0c9d1e5b7a4c2d8e6f1a2b3c4d5e6f",
                }
            ]
        }
    )

    type: str = Field(description="Identifies the kind of error; a page that explains it.")
    title: str = Field(description="The kind of error in words; the same for all of a kind.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    detail: str = Field(description="What happened this time.")
    instance: str = Field(description="The path that was asked for.")
    request_id: str = Field(description="Quote it when reporting the error: the logs carry it.")
    errors: list[FieldError] = Field([], description="Every fault of the request, if several.")


class Kind(BaseModel):
    """A kind of error."""

    model_config = ConfigDict(frozen=True)

    slug: str
    status: int
    title: str
    meaning: str


def _kind(slug: str, status: int, title: str, meaning: str) -> Kind:
    kind = Kind(slug=slug, status=status, title=title, meaning=meaning)
    KINDS[slug] = kind
    return kind


KINDS: dict[str, Kind] = {}
"""Every kind of error the application or the proxy before it answers with, by slug."""

BAD_REQUEST = _kind("bad-request", 400, "Bad request", "The request could not be understood.")
INVALID_JSON = _kind(
    "invalid-json",
    400,
    "Invalid JSON",
    "The body is not a JSON document in UTF-8, holds a number or text that JSON cannot carry, or "
    "nests deeper than 64 levels.",
)
UNAUTHORIZED = _kind(
    "unauthorized",
    401,
    "Unauthorized",
    "This page is for the operator. Sign in by HTTP Basic, as the WWW-Authenticate header asks.",
)
NOT_FOUND = _kind("not-found", 404, "Not found", "Nothing answers at this path.")
ITEM_NOT_FOUND = _kind("item-not-found", 404, "Item not found", "No item has this id.")
COUPON_NOT_FOUND = _kind("coupon-not-found", 404, "Coupon not found", "No coupon has this name.")
USER_NOT_FOUND = _kind("user-not-found", 404, "User not found", "No user has this id.")
KEY_NOT_FOUND = _kind(
    "key-not-found", 404, "Key not found", "The cache has no such key, or it has expired."
)
METHOD_NOT_ALLOWED = _kind(
    "method-not-allowed",
    405,
    "Method not allowed",
    "This path does not know this method; the Allow header lists those it knows.",
)
NAME_TAKEN = _kind("name-taken", 409, "Name taken", "Another of its kind already has this name.")
EMAIL_TAKEN = _kind("email-taken", 409, "Email taken", "Another user has this address.")
ALREADY_CLAIMED = _kind(
    "already-claimed",
    409,
    "Already claimed",
    "This user has claimed this coupon. Where an answer was lost, this is what it said.",
)
EVENT_ID_TAKEN = _kind(
    "event-id-taken",
    409,
    "Event id taken",
    "Two events of a tenant have the same id and differ. What is sent again must be the same.",
)
NONE_LEFT = _kind("none-left", 409, "None left", "All pieces of this coupon are claimed.")
TOO_LARGE = _kind(
    "content-too-large",
    413,
    "Content too large",
    "The body is larger than 1 MiB, unpacks to more than 8 MiB, or holds too many entries.",
)
UNSUPPORTED = _kind(
    "unsupported-media-type",
    415,
    "Unsupported media type",
    "The body must be sent as application/json, without Content-Encoding; where an operation takes "
    "more than that, its description says so.",
)
INVALID = _kind(
    "validation-error",
    422,
    "Validation error",
    "The request was understood, but values in it are missing, unknown or out of bounds; `errors` "
    "lists each.",
)
RATE_LIMITED = _kind(
    "rate-limited",
    429,
    "Too many requests",
    "More requests than one client may send. Wait for as many seconds as Retry-After says.",
)
INTERNAL = _kind(
    "internal-error",
    500,
    "Internal error",
    "The fault is ours. The logs have the details under the request id.",
)
UNAVAILABLE = _kind(
    "service-unavailable",
    503,
    "Service unavailable",
    "The database or Redis does not answer. Try again after as many seconds as Retry-After says; "
    "a request that writes may have taken effect.",
)

OF_A_BODY = (INVALID_JSON, TOO_LARGE, UNSUPPORTED, INVALID, UNAVAILABLE)
"""What any operation that takes a body and keeps something of it can end with."""

_BY_STATUS = {
    kind.status: kind
    for kind in (
        BAD_REQUEST,
        UNAUTHORIZED,
        NOT_FOUND,
        METHOD_NOT_ALLOWED,
        TOO_LARGE,
        UNSUPPORTED,
        INVALID,
        RATE_LIMITED,
        INTERNAL,
        UNAVAILABLE,
    )
}


class ProblemError(Exception):
    """Ends the request with a problem document."""

    def __init__(self, kind: Kind, detail: str, errors: list[dict[str, Any]] | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = errors


def problem(
    status: int,
    title: str,
    detail: str,
    slug: str | None,
    errors: list[dict[str, Any]] | None = None,
) -> Response:
    """Build a problem response; without slug its type is about:blank."""
    document: dict[str, Any] = {
        "type": f"/docs#problem-{slug}" if slug else "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.path,
        "request_id": request_id(),
    }
    if errors:
        document["errors"] = errors
    return Response(orjson.dumps(document), status, content_type=MEDIA_TYPE)


def _of_kind(kind: Kind, detail: str, errors: list[dict[str, Any]] | None = None) -> Response:
    return problem(kind.status, kind.title, detail, kind.slug, errors)


def _on_problem(error: ProblemError) -> Response:
    return _of_kind(error.kind, error.detail, error.errors)


def _on_unavailable(error: Unavailable) -> Response:
    response = _of_kind(UNAVAILABLE, f"The {error.name} does not answer at the moment.")
    response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def _on_http(error: HTTPException) -> Response:
    if isinstance(error, RequestRedirect):
        return Response(status=error.code, headers={"Location": error.new_url})
    status = error.code or 500
    detail = error.description or HTTPStatus(status).phrase
    if kind := _BY_STATUS.get(status):
        response = _of_kind(kind, detail)
    else:
        response = problem(status, HTTPStatus(status).phrase, detail, None)
    for name, value in error.get_headers(request.environ):
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def _on_bug(error: Exception) -> Response:
    _log.error("unhandled exception", exc_info=error)
    return _of_kind(INTERNAL, "Something went wrong on our side.")


def init_app(app: Flask) -> None:
    """Make every error of the application a problem document."""
    app.register_error_handler(ProblemError, _on_problem)
    app.register_error_handler(Unavailable, _on_unavailable)
    app.register_error_handler(HTTPException, _on_http)
    app.register_error_handler(Exception, _on_bug)
