"""When a new version is found to answer worse than the one before."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.module_utils.bake import SIGNIFICANCE, Answers, read, tail, worse

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


def answers(times: list[float], errors: int = 0) -> Answers:
    within = {bound: float(sum(t <= bound for t in times)) for bound in BOUNDS}
    return Answers(len(times), errors, {**within, math.inf: float(len(times))})


def test_reads_what_the_application_exposes() -> None:
    """BM-10: labels in any order, health checks left out, 5xx alone are errors."""
    text = """\
# TYPE http_requests_total counter
http_requests_total{method="GET",path="/api/items",status="200"} 90.0
http_requests_total{method="GET",path="/api/items",status="404"} 6.0
http_requests_total{status="503",method="POST",path="/api/items"} 4.0
http_requests_total{method="GET",path="/health",status="503"} 7.0
http_request_duration_seconds_bucket{le="0.1",method="GET",path="/api/items",status="200"} 80.0
http_request_duration_seconds_bucket{le="+Inf",method="GET",path="/api/items",status="200"} 90.0
http_request_duration_seconds_bucket{le="0.1",method="GET",path="/health",status="200"} 5.0
http_active_connections 1.0
"""
    assert read(text) == Answers(100, 4, {0.1: 80, math.inf: 90})


@given(trials=st.integers(1, 60), number=st.integers(0, 60), percent=st.integers(1, 99))
def test_tail_is_the_binomial_distribution(trials: int, number: int, percent: int) -> None:
    """BM-10: against the sum of exact fractions, where there are more hits than the mean."""
    share = Fraction(percent, 100)
    if not trials * share < number <= trials:
        return
    exact = sum(
        math.comb(trials, hits) * share**hits * (1 - share) ** (trials - hits)
        for hits in range(number, trials + 1)
    )
    assert tail(number, trials, float(share)) == pytest.approx(float(exact), rel=1e-6)


def test_equal_versions_raise_no_alarm() -> None:
    """BM-10: fifty good releases, looked at twenty times each, whatever their share of errors."""
    dice = random.Random(7)
    for share in (0.0, 0.001, 0.01, 0.2):
        for _ in range(50):
            old = answers([dice.expovariate(1 / 0.02) for _ in range(2000)])
            old.errors = sum(dice.random() < share for _ in range(2000))
            new = Answers()
            for _ in range(20):
                errors = sum(dice.random() < share for _ in range(100))
                new += answers([dice.expovariate(1 / 0.02) for _ in range(100)], errors)
                assert worse(old, new) == ""


def test_five_percent_of_errors() -> None:
    """BM-10: found within some hundred requests, and said in figures."""
    old = answers([0.004] * 1000, errors=1)
    reason = worse(old, answers([0.004] * 300, errors=15))
    assert reason == ("15 of 300 requests ended with a 5xx (5.0%); of the version before 1 of 1000")
    assert worse(old, answers([0.004] * 10, errors=4)) == ""


def test_slow_version() -> None:
    """BM-10: beyond twice the 95th percentile, and beyond what counts as slow."""
    old = answers([0.004] * 1000)
    reason = worse(old, answers([0.3] * 60))
    assert reason == (
        "60 of 60 requests took longer than 0.1 s; of the version before 95 % stayed within 0.005 s"
    )
    assert worse(old, answers([0.09] * 1000)) == ""
    assert worse(answers([0.3] * 1000), answers([0.4] * 1000)) == ""
    assert worse(answers([0.004] * 10), answers([0.3] * 60)) == ""


@given(
    old=st.lists(st.floats(0, 2), max_size=200),
    new=st.lists(st.floats(0, 2), max_size=200),
)
def test_any_figures_get_a_verdict(old: list[float], new: list[float]) -> None:
    """BM-10: no figures make it fail, and a version is never worse than itself."""
    assert isinstance(worse(answers(old, len(old) // 3), answers(new, len(new) // 2)), str)
    assert worse(answers(old, len(old) // 3), answers(old, len(old) // 3)) == ""


def test_significance() -> None:
    """BM-10: fifty releases, watched for a minute each, leave a margin of more than a hundred."""
    assert 50 * 120 * SIGNIFICANCE < 0.01
