"""/openapi.json and /docs.

The page is rendered here and brings its own stylesheet and no script, so that it shows under
`Content-Security-Policy: default-src 'self'`, which the packaged viewers do not.
"""

from __future__ import annotations

from typing import Any

import orjson
from flask import Blueprint, Response, render_template

from compose_app import errors
from compose_app.openapi import Api, json_response

_REF = "#/components/schemas/"


def _type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(_REF)
    if "anyOf" in schema:
        return " or ".join(_type_of(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {_type_of(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _bounds_of(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "at least",
        "maximum": "at most",
        "minLength": "characters at least",
        "maxLength": "characters at most",
        "pattern": "matches",
        "format": "format",
        "default": "default",
    }
    return ", ".join(
        f"{word} {_written(schema[key])}"
        for key, word in words.items()
        if schema.get(key) is not None
    )


def _written(value: object) -> str:
    # flask-openapi3 keeps the bounds of integers as floating-point numbers.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return orjson.dumps(value).decode()


def blueprint(app: Api) -> Blueprint:
    """The OpenAPI document and its page; both describe `app`."""
    bp = Blueprint(
        "docs",
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path="/docs/static",
    )
    bp.add_app_template_filter(_type_of, "type_of")
    bp.add_app_template_filter(_bounds_of, "bounds_of")

    @bp.get("/openapi.json")
    def openapi_json() -> Response:
        return json_response(app.api_doc)

    @bp.get("/docs")
    def page() -> Response:
        html = render_template("docs.html", spec=app.api_doc, kinds=errors.KINDS.values())
        return Response(html, content_type="text/html; charset=utf-8")

    return bp
