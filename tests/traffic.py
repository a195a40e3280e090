"""Clients that a release must not disturb: an open loop of writes, slow uploads, long requests."""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from plugins.module_utils.traffic import Address, PublicConnection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness import Site, Stack

POSTERS = 24
UPLOAD_BYTES = 1_000_000
UPLOAD_SECONDS = 5.0
TIMEOUT = 60.0


@dataclass(frozen=True)
class Answer:
    """One request: what kind, when it was due (monotonic seconds), how long it took from then."""

    kind: str
    due: float
    seconds: float
    failure: str = ""


@dataclass
class Traffic:
    """Sends until the block ends.

    Writes come at a fixed rate, over kept connections, whether or not the ones before have been
    answered: a stall is met by all that fall into it, and counts from when each was due. Nothing is
    ever tried again.
    """

    site: Site
    per_second: float = 40
    uploads: int = 1
    long_requests: int = 2
    answers: list[Answer] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._turns = itertools.count()
        self._began = time.monotonic()
        jobs: list[tuple[Callable[[], None], int]] = [
            (self._post, POSTERS),
            (self._upload, self.uploads),
            (self._wait, self.long_requests),
        ]
        self._threads = [
            threading.Thread(target=job, daemon=True) for job, number in jobs for _ in range(number)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.failure]

    def p99_ms(self, since: float, until: float) -> float:
        """Of the writes that were due between two moments."""
        times = [a.seconds for a in self.answers if a.kind == "POST" and since <= a.due < until]
        return statistics.quantiles(times, n=100)[98] * 1000

    def lost(self, stack: Stack) -> list[str]:
        """Writes that were acknowledged and are not in the database."""
        names = stack.execute(
            "postgres", "psql", "--host=/run/postgresql", "--username=postgres", "--dbname=app",
            "-XAtq", "--command", "SELECT name FROM items WHERE name LIKE 'traffic-%'",
        )  # fmt: skip
        return sorted(set(self.acknowledged) - set(names.split()))

    def _connection(self) -> PublicConnection:
        site = self.site
        address = Address(site.address, site.https_port, site.name, "", str(site.ca))
        return PublicConnection(address, TIMEOUT)

    def _post(self) -> None:
        connection = self._connection()
        while True:
            due = self._began + next(self._turns) / self.per_second
            if self._stop.wait(max(0.0, due - time.monotonic())):
                connection.close()
                return
            name = f"traffic-{uuid.uuid4()}"
            item = {"name": name, "description": "", "price_cents": 1, "quantity": 1}
            if self._send(connection, "POST", "/api/items", json.dumps(item).encode(), due, 201):
                self.acknowledged.append(name)
            else:
                connection.close()
                connection = self._connection()

    def _upload(self) -> None:
        body = json.dumps({"value": "x" * (UPLOAD_BYTES - 100), "ttl": 60}).encode()
        parts = 20
        size = -(-len(body) // parts)

        def slowly() -> object:
            for start in range(0, len(body), size):
                time.sleep(UPLOAD_SECONDS / parts)
                yield body[start : start + size]

        while not self._stop.is_set():
            connection = self._connection()
            path = f"/api/cache/traffic-{uuid.uuid4().hex[:8]}"
            self._send(connection, "PUT", path, slowly(), time.monotonic(), 200, len(body))
            connection.close()

    def _wait(self) -> None:
        while not self._stop.is_set():
            connection = self._connection()
            self._send(connection, "GET", "/api/slow", None, time.monotonic(), 200)
            connection.close()

    def _send(
        self,
        connection: PublicConnection,
        method: str,
        path: str,
        body: object,
        due: float,
        wanted: int,
        length: int | None = None,
    ) -> bool:
        headers = {"Host": self.site.name, "Content-Type": "application/json"}
        if length is not None:
            headers["Content-Length"] = str(length)
        failure = ""
        try:
            connection.request(method, path, body=body, headers=headers)  # type: ignore[arg-type]
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != wanted:
                failure = f"HTTP {answer.status}: {text[:200].decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            failure = f"{type(error).__name__}: {error}"
        self.answers.append(Answer(method, due, time.monotonic() - due, failure))
        return not failure


def add_slow_route(source: Path, seconds: float) -> None:
    """Give a copy of the application's source a route that takes its time."""
    app = source / "compose_app" / "app.py"
    text = app.read_text()
    head = "    errors.init_app(app)\n"
    assert head in text
    slow = (
        "    import time\n\n"
        '    @app.get("/api/slow")\n'
        "    def slow() -> str:\n"
        f"        time.sleep({seconds})\n"
        '        return "slow"\n\n'
    )
    app.write_text(text.replace(head, slow + head))
