"""Prometheus' HTTP API: two queries for a page, and never a wait for longer than DEADLINE."""

from __future__ import annotations

import http.client
import math
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, ValidationError

DEADLINE = 2.0
"""Seconds for everything asked of Prometheus together."""
MAX_BYTES = 2 * 1024 * 1024
"""Of one answer; that of 100 containers has 300 kB."""
WINDOW = 3600
"""Seconds of history."""
STEP = 120
"""Seconds between two points of history: the rates are those of five minutes, and the quantiles of
600 series of buckets take Prometheus 3 ms a point."""
POINTS = WINDOW // STEP + 1
TAG = "status_page"
"""Label that says which of the expressions of a query a series comes from."""


class _Vector(BaseModel):
    metric: dict[str, str]
    value: tuple[float, float]


class _Matrix(BaseModel):
    metric: dict[str, str]
    values: list[tuple[float, float]]


class _VectorData(BaseModel):
    resultType: Literal["vector"]  # noqa: N815 - Prometheus' spelling
    result: list[_Vector]


class _MatrixData(BaseModel):
    resultType: Literal["matrix"]  # noqa: N815 - Prometheus' spelling
    result: list[_Matrix]


class _VectorAnswer(BaseModel):
    status: Literal["success"]
    data: _VectorData


class _MatrixAnswer(BaseModel):
    status: Literal["success"]
    data: _MatrixData


class _Trouble(Exception):
    """What is wrong with Prometheus, as a predicate: "refuses connections"."""


@dataclass
class Sample:
    """One series now; a value that is no number is left out."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass
class Reading:
    """What Prometheus has told before the deadline."""

    samples: list[Sample] | None = None
    history: dict[str, list[float | None]] | None = None
    trouble: str | None = None
    """Why something is missing."""


@dataclass
class Question:
    """What a page wants to know."""

    metrics: tuple[str, ...]
    """Names of metrics of which every series is wanted, as it is now."""
    history: dict[str, str]
    """Expressions with at most one series each, by name, wanted for the last hour."""
    instant_query: str = field(init=False)
    range_query: str = field(init=False)

    def __post_init__(self) -> None:
        # One query for all: each by itself would take several times as long.
        self.instant_query = f'{{__name__=~"{"|".join(self.metrics)}"}}'
        self.range_query = " or ".join(
            f'label_replace({expression}, "{TAG}", "{name}", "", "")'
            for name, expression in self.history.items()
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Job(threading.Thread):
    """Asks in the background: looking up a name, for one, has no time limit of its own."""

    def __init__(self, url: str, question: Question, now: int) -> None:
        super().__init__(name="prometheus", daemon=True)
        self.reading = Reading()
        parts = urlsplit(url)
        kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
        if parts.scheme == "https":
            kind = http.client.HTTPSConnection
        self._connection = kind(str(parts.hostname), parts.port, timeout=DEADLINE)
        self._path = parts.path.rstrip("/")
        self._question = question
        self._now = now
        self._given_up = False

    def run(self) -> None:
        try:
            self._ask()
        except _Trouble as trouble:
            self.reading.trouble = str(trouble)
        except TimeoutError:
            self.reading.trouble = f"does not answer within {DEADLINE:g} s"
        except socket.gaierror:
            self.reading.trouble = "is not known by this name"
        except ConnectionRefusedError:
            self.reading.trouble = "refuses connections"
        except ConnectionResetError:
            self.reading.trouble = "hangs up without an answer"
        except OSError as error:
            self.reading.trouble = f"cannot be reached ({error.strerror or error})"
        except http.client.HTTPException:
            self.reading.trouble = "answers something that is not HTTP"
        except ValidationError:
            self.reading.trouble = "answers something that is not a result"
        finally:
            self._connection.close()

    def give_up(self) -> None:
        """End a conversation that nobody waits for any more, however slowly it goes on."""
        self._given_up = True
        if self._connection.sock:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
            self.join(0.1)

    def _ask(self) -> None:
        self._connection.connect()
        if self._given_up:
            return
        body = self._post("query", query=self._question.instant_query, time=self._now)
        vector = _VectorAnswer.model_validate_json(body)
        self.reading.samples = [
            Sample(series.metric.get("__name__", ""), series.metric, series.value[1])
            for series in vector.data.result
            if math.isfinite(series.value[1])
        ]
        start = self._now - WINDOW
        body = self._post(
            "query_range",
            query=self._question.range_query,
            start=start,
            end=self._now,
            step=STEP,
        )
        history: dict[str, list[float | None]] = {
            name: [None] * POINTS for name in self._question.history
        }
        for series in _MatrixAnswer.model_validate_json(body).data.result:
            points = history.get(series.metric.get(TAG, ""))
            for moment, value in series.values if points else ():
                index = round((moment - start) / STEP) if math.isfinite(moment) else -1
                if points and 0 <= index < POINTS:
                    points[index] = _finite(value)
        self.reading.history = history

    def _post(self, endpoint: str, **parameters: Any) -> bytes:
        self._connection.request(
            "POST",
            f"{self._path}/api/v1/{endpoint}",
            urlencode({**parameters, "timeout": f"{DEADLINE:g}s"}),
            {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
        )
        response = self._connection.getresponse()
        if response.status != 200:
            raise _Trouble(f"answers with status {response.status}")
        body = response.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise _Trouble(f"answers with more than {MAX_BYTES} bytes")
        return body


class Prometheus:
    """The worker's way to Prometheus. Made before fork; threads start with the first question."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self._job: Job | None = None

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return urlsplit(self.url or "").netloc

    def ask(self, question: Question, now: int) -> Job | None:
        """Begin to ask; None when the job before has not ended, so that they do not pile up."""
        if not self.url or (self._job and self._job.is_alive()):
            return None
        self._job = Job(self.url, question, now)
        self._job.start()
        return self._job

    @staticmethod
    def answer(job: Job | None, seconds: float) -> Reading:
        """Wait for a job's end, and take what there is."""
        late = Reading(trouble=f"does not answer within {DEADLINE:g} s")
        if job is None:
            return late
        job.join(max(seconds, 0))
        if not job.is_alive():
            return job.reading
        job.give_up()
        return Reading(job.reading.samples, job.reading.history, late.trouble)
