"""The API, asked from within: what the console shows and does is what any client could."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import Any

import orjson
from flask import Flask
from werkzeug.test import Client

from compose_app.scope import request_id


@dataclass(frozen=True)
class Answer:
    """What an operation answered."""

    status: int
    document: dict[str, Any]

    @property
    def good(self) -> bool:
        return self.status < 400

    @property
    def faults(self) -> list[str]:
        """A problem in words: what happened, then each value at fault."""
        errors = self.document.get("errors", [])
        named = [f"{error['location'][-1]}: {error['message']}" for error in errors]
        return [str(self.document.get("detail", "")), *named]


class InnerApi:
    """Calls operations of an application as one of its clients."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """Ask for an operation under the id of the request at hand."""

        def ask() -> Answer:
            answer = Client(self._app).open(
                path,
                method=method,
                headers={"X-Request-ID": asked_by},
                data=None if body is None else orjson.dumps(body),
                content_type=None if body is None else "application/json",
            )
            data = answer.get_data()
            return Answer(answer.status_code, orjson.loads(data) if data else {})

        asked_by = request_id()
        # A context of its own: at its end the inner request forgets what the log knows of it.
        return contextvars.copy_context().run(ask)
