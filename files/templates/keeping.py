"""What the keepers of backups and of certificates have in common; a part of each."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EVERY = 60
"""Seconds between two looks at what is due."""
PAUSES = (30, 120, 600)
"""Seconds before what failed is tried again: after the first failure, the second, and the rest."""


class Refused(Exception):  # noqa: N818  it is an answer
    """What was asked cannot be done; the text is for the operator."""

    def __init__(self, text: str, output: str = "") -> None:
        super().__init__(text)
        self.output = output
        """All that a command has said that failed."""


class State:
    """What a keeper remembers, in one file."""

    def __init__(self, path: Path, **defaults: Any) -> None:
        self.path = path
        self.defaults = defaults

    def read(self) -> dict[str, Any]:
        found = dict(self.defaults)
        with contextlib.suppress(FileNotFoundError):
            found.update(json.loads(self.path.read_text()))
        return found

    def update(self, **values: Any) -> None:
        # The server's threads, and what is typed meanwhile.
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write(self.path, json.dumps({**self.read(), **values}, indent=1), 0o600)


def write(path: Path, text: str, mode: int) -> None:
    """Write a file, which is there as a whole or as it was."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """While no other process of the keeper holds this lock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def shown(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def pause(failures: int) -> int:
    """Seconds to wait after so many failures in a row."""
    return PAUSES[min(failures, len(PAUSES)) - 1]


def run(*command: str, seconds: float | None = None, **environment: str) -> str:
    """Output of a command.

    Raises:
        Refused: it failed, with the last lines that it said.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=seconds, check=False, env={**os.environ, **environment},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        raise Refused(f"{command[0]} took more than {seconds} s", said) from None
    if done.returncode:
        said = " ".join(done.stdout.strip().splitlines()[-3:])
        raise Refused(f"{command[0]} ended with {done.returncode}: {said}", done.stdout)
    return done.stdout


def serve_metrics(port: int, text: Callable[[], str]) -> None:
    """Answer to Prometheus, and to health checks, from now on."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text().encode() if self.path == "/metrics" else b"ok\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing of each."""

    server = http.server.ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def gauges(values: dict[str, float | dict[str, float]]) -> str:
    """Figures as Prometheus reads them; those with labels by `label="value"`."""
    lines = []
    for name, value in values.items():
        lines.append(f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}")
        if isinstance(value, dict):
            # No two braces side by side: this file is rendered.
            lines += [name + "{" + labels + "} " + str(value[labels]) for labels in value]
        else:
            lines.append(f"{name} {value}")
    return "\n".join(lines) + "\n"


def ask_health(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=4) as answer:
        answer.read()


def answered(answer: Callable[[], Any]) -> None:
    """Print an answer, or the refusal, as one line of JSON."""
    try:
        found = answer()
    except Refused as refusal:
        print(json.dumps({"refused": str(refusal)}))
        sys.exit(1)
    if found is not None:
        print(json.dumps(found))
