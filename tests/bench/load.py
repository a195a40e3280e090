"""Requests per second with `h2load`, through nginx and straight to gunicorn."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.harness import Engine, Stack, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 16
PAIRS = 20
# So many that the connections, which the clients of nginx open but once, weigh nothing.
REQUESTS = 5000
PORT = 8000
ENGINE = Engine()

Listen = Literal["network", "socket"]
"""Where gunicorn listens: as nginx does, or as it does for nginx."""


@dataclass(frozen=True)
class Target:
    """What is asked for, and where."""

    url: str
    place: str
    """Where, as an option of h2load."""
    container: str


@dataclass(frozen=True)
class Rate:
    """What one run of h2load measured."""

    per_second: float
    p99_ms: float
    cpu_us: float
    """CPU time that the asked container took for each request."""


@dataclass(frozen=True)
class Comparison:
    """Pairs of runs, those of a pair one right after the other."""

    ours: list[Rate]
    theirs: list[Rate]

    @property
    def ratio(self) -> float:
        """Of what each reaches in its fastest tenth: what else the machine does only slows down."""
        ours, theirs = (
            statistics.quantiles((rate.per_second for rate in rates), n=10)[-1]
            for rates in (self.ours, self.theirs)
        )
        return ours / theirs

    @property
    def cpu_us(self) -> tuple[float, float]:
        """CPU time for a request, ours and theirs, in the tenth of the runs that took least."""
        ours, theirs = (
            statistics.quantiles((rate.cpu_us for rate in rates), n=10)[0]
            for rates in (self.ours, self.theirs)
        )
        return ours, theirs

    @property
    def spread(self) -> str:
        """Between what the middle half of the pairs lies."""
        pairs = zip(self.ours, self.theirs, strict=True)
        ratios = [ours.per_second / theirs.per_second for ours, theirs in pairs]
        low, _, high = statistics.quantiles(ratios, n=4)
        return f"{len(ratios)} pairs: half of them between {low:.2f} and {high:.2f}"


def median(rates: list[Rate]) -> Rate:
    return Rate(
        statistics.median(rate.per_second for rate in rates),
        statistics.median(rate.p99_ms for rate in rates),
        statistics.median(rate.cpu_us for rate in rates),
    )


def missing() -> str:
    """What has to be installed first; empty when nothing."""
    return "" if shutil.which("h2load") else "h2load is missing: apt-get install nghttp2-client"


def h2load(target: Target, number: int) -> Rate:
    """Send that many requests; raises when an answer was not a 2xx.

    h2load's log has a line for each answer: microseconds since 1970 when its request began, its
    status, and the microseconds that it took.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        before = _cpu_us(target.container)
        output = ENGINE.run(
            *("h2load", "--h1", f"--clients={CONNECTIONS}", f"--requests={number}"),
            *(f"--log-file={log.name}", target.place, target.url),
            seconds=120,
        )
        cpu_us = (_cpu_us(target.container) - before) / number
        lines = log.read().splitlines()
    wrong = re.search(r"\b[1-9]\d* (?:failed|errored|timeout)\b", output)
    assert wrong is None, f"h2load: {wrong and wrong[0]}"
    asked = [(int(begun), int(took)) for begun, _, took in map(str.split, lines)]
    elapsed = max(begun + took for begun, took in asked) - min(begun for begun, _ in asked)
    slow = statistics.quantiles((took for _, took in asked), n=100)[98]
    return Rate(len(asked) / elapsed * 1e6, slow / 1000, cpu_us)


def _cpu_us(container: str) -> float:
    """CPU time that the processes of a container have taken."""
    taken = 0
    for pid in ENGINE.run("docker", "top", container, "-o", "pid").split()[1:]:
        with contextlib.suppress(FileNotFoundError):  # a health check that has ended since
            taken += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return taken / 1000


def through_nginx(stack: Stack, *, bare_on: Listen) -> Comparison:
    """GET of one item by its id: through nginx, and from gunicorn itself."""
    path = _item(stack)
    nginx = stack.one("nginx")["Id"]
    place = f"--connect-to={_address(nginx, stack, 'frontend')}:8443"
    with gunicorn(stack, listen=bare_on) as (container, bare):
        return _in_turns(
            Target(f"https://{stack.site.name}{path}", place, nginx),
            Target(f"http://{stack.site.name}{path}", bare, container),
        )


def with_metrics(stack: Stack) -> Comparison:
    """GET of one item by its id: from gunicorn as it is, and without its metrics."""
    url = f"http://{stack.site.name}{_item(stack)}"
    with gunicorn(stack) as ours, gunicorn(stack, metrics=False) as theirs:
        return _in_turns(*(Target(url, socket, name) for name, socket in (ours, theirs)))


def _item(stack: Stack) -> str:
    item = {"description": "", "price_cents": 995, "quantity": 3}
    made = stack.site.patiently(
        "POST", "/api/items", json={"name": f"measured {time.time_ns()}", **item}
    )
    assert made.status_code == 201, made.text
    return f"/api/items/{made.json()['id']}"


def _in_turns(ours: Target, theirs: Target) -> Comparison:
    compared = Comparison([], [])
    for target in (ours, theirs):
        h2load(target, 3 * REQUESTS)
    for pair in range(PAIRS):
        # Whoever comes second finds a warmer machine: each does so in turn.
        order = [(ours, compared.ours), (theirs, compared.theirs)]
        for target, rates in order if pair % 2 == 0 else reversed(order):
            rates.append(h2load(target, REQUESTS))
    return compared


WITHOUT_METRICS = """\
from gunicorn.app.wsgiapp import run
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

def nothing(*_, **__):
    pass

Counter.inc = Gauge.inc = Gauge.dec = Gauge.set = Histogram.observe = nothing
MetricWrapperBase.labels = lambda self, *_, **__: self
run()
"""


@contextlib.contextmanager
def gunicorn(
    stack: Stack, *, metrics: bool = True, listen: Listen = "socket"
) -> Iterator[tuple[str, str]]:
    """One more container of the API's service, by its name and where h2load finds it.

    Image, environment, networks, secrets and limits are the service's.
    """
    name = f"{stack.project}-{'bare' if metrics else 'unmeasured'}"
    ENGINE.run("docker", "rm", "--force", name, check=False)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        directory.chmod(0o777)
        socket = directory / "gunicorn.sock"
        bind = f"unix:/bench/{socket.name}" if listen == "socket" else f"0.0.0.0:{PORT}"
        try:
            stack.compose(
                *("run", "--detach", "--no-deps", "--name", name),
                # Neither the socket nor the metrics address of the one that serves.
                *("--env", "API_SOCKET_DIR=/tmp", "--env", "METRICS_PORT=0"),
                *("--volume", f"{directory}:/bench"),
                stack.api_slot(),
                *(["gunicorn"] if metrics else ["python3", "-c", WITHOUT_METRICS]),
                *("--config", "python:compose_app.gunicorn_conf"),
                *("--bind", bind, "compose_app:create_app()"),
            )
            if listen == "socket":
                place = f"--base-uri=unix:{socket}"
                asked = ["--unix-socket", str(socket), "http://localhost/health"]
            else:
                address = f"{_address(name, stack, 'backend')}:{PORT}"
                place = f"--connect-to={address}"
                asked = [f"http://{address}/health"]
            wait_for("gunicorn without nginx", lambda: _answers(asked), 60)
            yield name, place
        finally:
            ENGINE.run("docker", "rm", "--force", name, check=False)


def _address(container: str, stack: Stack, network: str) -> str:
    (item,) = json.loads(ENGINE.run("docker", "inspect", container))
    return str(item["NetworkSettings"]["Networks"][f"{stack.project}_{network}"]["IPAddress"])


def _answers(asked: list[str]) -> bool:
    return ENGINE.succeeds("curl", "--silent", "--fail", "--output", "/dev/null", *asked)
