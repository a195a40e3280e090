"""`compose-app mailbox`: stands in for an email service, in development and in tests.

POST /messages    take a message; one with an Idempotency-Key that is known is not taken twice
GET /messages     what was taken, with the number of requests for each
DELETE /messages  forget all
PUT /behaviour    what to do wrong from now on
GET /health
"""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

from flask import Flask, Response, jsonify, request
from gunicorn.app.base import BaseApplication
from pydantic import BaseModel, ConfigDict, Field, ValidationError

PORT = 8025
THREADS = 64
MOST = 100_000
"""Messages that are kept."""


class Behaviour(BaseModel):
    """What the service does wrong."""

    model_config = ConfigDict(extra="forbid")

    failure: float = Field(0, ge=0, le=1)
    """Share of requests that are answered with `status`, and no message taken."""
    status: int = Field(503, ge=400, le=599)
    latency_seconds: float = Field(0, ge=0, le=60)
    duplicates: float = Field(0, ge=0, le=1)
    """Share of requests whose message is taken, but answered with `status`: it comes again."""


class Message(BaseModel):
    """A message to be sent."""

    model_config = ConfigDict(extra="forbid")

    to: str
    subject: str
    text: str


def build_app() -> Flask:
    """The service, empty and well."""
    app = Flask(__name__)
    lock = threading.Lock()
    taken: dict[str, dict[str, Any]] = {}
    state = {"behaviour": Behaviour.model_validate({})}

    @app.errorhandler(ValidationError)
    def invalid(error: ValidationError) -> tuple[Response, int]:
        return jsonify(errors=error.errors(include_url=False, include_context=False)), 422

    @app.post("/messages")
    def take() -> tuple[Response, int]:
        message = Message.model_validate_json(request.get_data())
        behaviour = state["behaviour"]
        time.sleep(behaviour.latency_seconds)
        if random.random() < behaviour.failure:  # noqa: S311 - no secret depends on it
            return jsonify(error="as told"), behaviour.status
        with lock:
            key = request.headers.get("Idempotency-Key", f"none-{len(taken)}")
            if key in taken:
                taken[key]["requests"] += 1
            elif len(taken) >= MOST:
                return jsonify(error="full"), 507
            else:
                taken[key] = {"key": key, "requests": 1, **message.model_dump()}
        if random.random() < behaviour.duplicates:  # noqa: S311
            return jsonify(error="as told, but taken"), behaviour.status
        return jsonify(key=key), 202

    @app.get("/messages")
    def show() -> Response:
        with lock:
            return jsonify(list(taken.values()))

    @app.delete("/messages")
    def forget() -> tuple[str, int]:
        with lock:
            taken.clear()
        return "", 204

    @app.put("/behaviour")
    def behave() -> Response:
        state["behaviour"] = Behaviour.model_validate_json(request.get_data())
        return jsonify(state["behaviour"].model_dump())

    @app.get("/health")
    def health() -> str:
        return "ok\n"

    return app


class _Server(BaseApplication):  # type: ignore[misc, unused-ignore]
    def load_config(self) -> None:
        self.cfg.set("bind", [f"{os.environ.get('MAILBOX_HOST', '0.0.0.0')}:{PORT}"])  # noqa: S104
        self.cfg.set("worker_class", "gthread")
        self.cfg.set("threads", THREADS)  # one process: what was taken is in its memory
        self.cfg.set("control_socket_disable", True)
        self.cfg.set("worker_tmp_dir", "/dev/shm")  # noqa: S108

    def load(self) -> Any:
        return build_app()


def main() -> int:
    """Serve until SIGTERM."""
    _Server().run()
    return 0
