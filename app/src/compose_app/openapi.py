"""Requests read strictly, and the OpenAPI 3.1 document made from the same models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import orjson
from flask import Response, request
from flask_openapi3 import APIBlueprint, Info, OpenAPI
from pydantic import BaseModel, ConfigDict, ValidationError

from compose_app import __version__, errors
from compose_app.errors import Kind, Problem, ProblemError

MAX_BODY = 1024 * 1024
"""Bytes."""
MAX_DEPTH = 64
"""Levels of arrays and objects in a body; what is answered must be writable again."""

_M = TypeVar("_M", bound=BaseModel)


def json_response(
    document: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with a JSON document; timestamps are written as RFC 3339."""
    return Response(orjson.dumps(document), status, headers, content_type="application/json")


def _validated(model: type[_M], values: Any, part: str) -> _M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [
            {
                "location": [part, *detail["loc"]],
                "message": detail["msg"].removeprefix("Value error, "),
            }
            for detail in error.errors(include_url=False, include_input=False)
        ]
        raise ProblemError(errors.INVALID, f"The {part} is not valid.", faults) from None


def _deeper_than(limit: int, value: object) -> bool:
    containers = [value]
    for _ in range(limit):
        containers = [
            child
            for node in containers
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    return bool(containers)


def read_json() -> Any:
    """The body of the request at hand, parsed.

    Raises:
        ProblemError: 415 for another content type, 400 for what is not JSON.
        werkzeug.exceptions.RequestEntityTooLarge: more than MAX_BODY bytes.
    """
    if request.mimetype != "application/json" or request.content_encoding not in (None, "identity"):
        raise ProblemError(errors.UNSUPPORTED, "Send the body as application/json.")
    return parse_json(request.get_data(cache=False))


def parse_json(text: bytes, line: int | None = None) -> Any:
    """A JSON document of the request at hand; of a body that holds one a line, tell which line.

    Raises:
        ProblemError: 400, it is not JSON.
    """
    part = "The body" if line is None else f"Line {line} of the body"
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProblemError(errors.INVALID_JSON, f"{part} is not JSON: {error}.") from None
    # Many shallow objects open as many brackets as a deep one: only then is it worth a look.
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _deeper_than(MAX_DEPTH, value):
        raise ProblemError(errors.INVALID_JSON, f"{part} nests deeper than {MAX_DEPTH} levels.")
    return value


def _read_query() -> dict[str, str]:
    repeated = [name for name, values in request.args.lists() if len(values) > 1]
    if repeated:
        faults = [{"location": ["query", name], "message": "Given twice"} for name in repeated]
        raise ProblemError(errors.INVALID, "The query is not valid.", faults)
    return request.args.to_dict()


class Blueprint(APIBlueprint):
    """A blueprint whose views get their `path`, `query` and `body` parsed by our rules.

    flask-openapi3's own reading takes malformed JSON for an absent body and parses a JSON string
    as JSON once more.
    """

    @staticmethod
    def create_view_func(  # type: ignore[override]
        func: Callable[..., Response],
        header: None,
        cookie: None,
        path: type[BaseModel] | None,
        query: type[BaseModel] | None,
        form: None,
        body: type[BaseModel] | None,
        raw: None,
        **_: Any,
    ) -> Callable[..., Response]:
        @wraps(func)
        def view(**path_values: str) -> Response:
            arguments: dict[str, BaseModel] = {}
            if path:
                arguments["path"] = _validated(path, path_values, "path")
            if query:
                arguments["query"] = _validated(query, _read_query(), "query")
            if body:
                # A model may know how to read a body that is not just JSON.
                read = getattr(body, "read", read_json)
                arguments["body"] = _validated(body, read(), "body")
            return func(**arguments)

        return view


def created(model: type[_M]) -> type[_M]:
    """The response 201 of an operation that answers with the new thing and where it is.

    A model of the same name, so that the document has the schema once.
    """
    location = {"Location": {"description": "Path of what is new.", "schema": {"type": "string"}}}
    config = ConfigDict(openapi_extra={"headers": location})  # type: ignore[typeddict-unknown-key]
    return type(model.__name__, (model,), {"__doc__": model.__doc__, "model_config": config})


def problems(*kinds: Kind) -> dict[int | str, Any]:
    """Responses of an operation for the kinds of error it can end with.

    Those that any operation may end with, 400 and 429, are added to each.
    """
    by_status: dict[int, list[Kind]] = {}
    for kind in (errors.BAD_REQUEST, errors.RATE_LIMITED, *kinds):
        by_status.setdefault(kind.status, []).append(kind)
    responses: dict[int | str, Any] = {}
    for status, group in by_status.items():
        responses[status] = {
            "description": " ".join(kind.meaning for kind in group),
            "content": {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status in (429, 503):
            responses[status]["headers"] = {
                "Retry-After": {
                    "description": "Seconds to wait.",
                    "schema": {"type": "integer", "minimum": 0},
                }
            }
    return responses


class Api(OpenAPI):
    """The Flask application, and the keeper of its OpenAPI document."""

    def __init__(self) -> None:
        super().__init__(
            "compose_app",
            info=Info(
                title="compose-app",
                version=__version__,
                description="Items, coupons, users, usage and a cache. "
                "Every error is a problem document (RFC 9457).",
            ),
            validation_error_model=Problem,
            doc_ui=False,
            static_folder=None,
        )

    def generate_spec_json(self) -> None:
        """Make the document, without what flask-openapi3 adds to it unasked.

        That is a 422 for every operation, and a `securitySchemes` of null.
        """
        super().generate_spec_json()  # type: ignore[no-untyped-call]
        del self.spec_json["components"]["securitySchemes"]
        for path in self.spec_json["paths"].values():
            for operation in path.values():
                if "application/json" in operation["responses"]["422"].get("content", {}):
                    del operation["responses"]["422"]
