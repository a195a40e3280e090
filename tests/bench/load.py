"""Requests per second with `wrk`, through nginx and straight to gunicorn."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import requests

from tests.harness import Engine, Stack, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 16
BARE_PORT = 8000
ENGINE = Engine()
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}


@dataclass(frozen=True)
class Rate:
    """What one run of wrk measured."""

    per_second: float
    p99_ms: float


@dataclass(frozen=True)
class Comparison:
    """Pairs of runs, those of a pair one right after the other."""

    ours: list[Rate]
    theirs: list[Rate]

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours.per_second / theirs.per_second for ours, theirs in pairs]

    @property
    def spread(self) -> str:
        """Between what the middle half of the pairs lies."""
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return f"{len(self.ratios)} pairs, half of them between {low:.2f} and {high:.2f}"

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def median(rates: list[Rate]) -> Rate:
    return Rate(
        statistics.median(rate.per_second for rate in rates),
        statistics.median(rate.p99_ms for rate in rates),
    )


def missing() -> str:
    """What has to be installed first; empty when nothing."""
    return "" if shutil.which("wrk") else "wrk is missing: apt-get install wrk"


def parse(output: str) -> Rate:
    """What wrk said; raises when an answer was not the one asked for."""
    wrong = re.search(r"Non-2xx or 3xx responses: .*|Socket errors: .*", output)
    assert wrong is None, f"wrk: {wrong and wrong[0]}"
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", output, re.MULTILINE)
    slow = re.search(r"^\s+99%\s+([\d.]+)(us|ms|s|m)\s*$", output, re.MULTILINE)
    assert rate is not None, output
    assert slow is not None, output
    return Rate(float(rate[1]), float(slow[1]) * MILLISECONDS[slow[2]])


def wrk(url: str, host: str, seconds: int) -> Rate:
    return parse(
        ENGINE.run(
            "wrk",
            "--threads=1",
            f"--connections={CONNECTIONS}",
            f"--duration={seconds}s",
            "--latency",
            f"--header=Host: {host}",
            url,
            seconds=seconds + 30,
        )
    )


def through_nginx(stack: Stack, pairs: int, seconds: int) -> Comparison:
    """GET of one item by its id: through nginx, and from gunicorn itself."""
    path = _item(stack)
    with gunicorn(stack) as straight:
        nginx = f"https://{_address(stack.one('nginx')['Id'], stack, 'frontend')}:8443"
        return _in_turns(stack, nginx + path, straight + path, pairs, seconds)


def with_metrics(stack: Stack, pairs: int, seconds: int) -> Comparison:
    """GET of one item by its id: from gunicorn as it is, and without its metrics."""
    path = _item(stack)
    with gunicorn(stack) as ours, gunicorn(stack, metrics=False) as theirs:
        return _at_once(stack, ours + path, theirs + path, pairs, seconds)


def _item(stack: Stack) -> str:
    item = {"description": "", "price_cents": 995, "quantity": 3}
    made = stack.site.patiently(
        "POST", "/api/items", json={"name": f"measured {time.time_ns()}", **item}
    )
    assert made.status_code == 201, made.text
    return f"/api/items/{made.json()['id']}"


def _in_turns(stack: Stack, ours: str, theirs: str, pairs: int, seconds: int) -> Comparison:
    compared = Comparison([], [])
    name = stack.site.name
    for url in (ours, theirs):
        wrk(url, name, 2)
    for pair in range(pairs):
        # Whoever comes second finds a warmer machine: each does so in turn.
        order = [(ours, compared.ours), (theirs, compared.theirs)]
        for url, rates in order if pair % 2 == 0 else reversed(order):
            rates.append(wrk(url, name, seconds))
    return compared


def _at_once(stack: Stack, ours: str, theirs: str, pairs: int, seconds: int) -> Comparison:
    """Both together, as equals: whatever else the machine does, it does to both."""
    name = stack.site.name
    compared = Comparison([], [])
    for url in (ours, theirs):
        wrk(url, name, 2)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(pairs):
            running = [pool.submit(wrk, url, name, seconds) for url in (ours, theirs)]
            compared.ours.append(running[0].result())
            compared.theirs.append(running[1].result())
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
def gunicorn(stack: Stack, *, metrics: bool = True) -> Iterator[str]:
    """One more container of the API's service, which listens on TCP instead of a socket.

    Image, environment, networks, secrets and limits are the service's.
    """
    name = f"{stack.project}-{'bare' if metrics else 'unmeasured'}"
    ENGINE.run("docker", "rm", "--force", name, check=False)
    try:
        stack.compose(
            *("run", "--detach", "--no-deps", "--name", name),
            # Neither the socket nor the metrics address of the one that serves.
            *("--env", "API_SOCKET_DIR=/tmp", "--env", "METRICS_PORT=0"),
            stack.api_slot(),
            *(["gunicorn"] if metrics else ["python3", "-c", WITHOUT_METRICS]),
            *("--config", "python:compose_app.gunicorn_conf"),
            *("--bind", f"0.0.0.0:{BARE_PORT}", "compose_app:create_app()"),
        )
        # The host reaches a container of an internal network, too.
        address = f"http://{_address(name, stack, 'backend')}:{BARE_PORT}"
        wait_for("gunicorn without nginx", lambda: _answers(f"{address}/health"), 60)
        yield address
    finally:
        ENGINE.run("docker", "rm", "--force", name, check=False)


def _address(container: str, stack: Stack, network: str) -> str:
    (item,) = json.loads(ENGINE.run("docker", "inspect", container))
    return str(item["NetworkSettings"]["Networks"][f"{stack.project}_{network}"]["IPAddress"])


def _answers(url: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.get(url, timeout=5).status_code == 200
        except requests.RequestException:
            return False
