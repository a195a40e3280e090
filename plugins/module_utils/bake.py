"""Whether a new version answers worse than the one before it, by the counters of both."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

SIGNIFICANCE = 1e-6
"""How improbable the new version's figures must be under the old one's for a verdict."""
FEWEST_ERRORS = 5
FEWEST_REQUESTS = 50
OLD_ERRORS_AT_LEAST = 0.001
"""Share of errors that any version is granted."""
SLOW_SECONDS = 0.1
"""What is answered within this is not called slow, whatever it took before."""
OLD_SLOW_AT_LEAST = 0.05
"""Share of slow answers that any version is granted: the 95th percentile stays below them."""

_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
PROBES = frozenset({"/health", "/health/live", "/metrics"})
"""What is asked all the time whatever clients do: it would thin out their errors."""


@dataclass
class Answers:
    """Requests that a version has answered, as its counters have them."""

    count: float = 0
    errors: float = 0
    within: dict[float, float] = field(default_factory=dict)
    """How many took at most so many seconds, by that number."""

    def __add__(self, other: Answers) -> Answers:
        return self._with(other, 1)

    def __sub__(self, other: Answers) -> Answers:
        return self._with(other, -1)

    def _with(self, other: Answers, sign: int) -> Answers:
        bounds = self.within.keys() | other.within.keys()
        return Answers(
            self.count + sign * other.count,
            self.errors + sign * other.errors,
            {
                bound: self.within.get(bound, 0) + sign * other.within.get(bound, 0)
                for bound in bounds
            },
        )

    def p95(self) -> float:
        """Least bound (seconds) that 95 % of the answers stayed within; infinite beyond all."""
        fitting = (b for b, number in sorted(self.within.items()) if number >= 0.95 * self.count)
        return next(fitting, math.inf)


def read(exposition: str) -> Answers:
    """Add up what a version's /metrics says, without its health checks."""
    answers = Answers()
    for line in exposition.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        labels = dict(_LABEL.findall(sample["labels"]))
        if labels.get("path") in PROBES:
            continue
        value = float(sample["value"])
        if sample["name"] == "http_requests_total":
            answers.count += value
            answers.errors += value if labels["status"].startswith("5") else 0
        elif sample["name"] == "http_request_duration_seconds_bucket":
            bound = float(labels["le"])
            answers.within[bound] = answers.within.get(bound, 0) + value
    return answers


def tail(number: int, trials: int, share: float) -> float:
    """Probability of at least `number` hits in `trials` of that share (binomial distribution)."""
    if number <= trials * share:
        return 1.0
    logs = (
        math.lgamma(trials + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(trials - hits + 1)
        + hits * math.log(share)
        + (trials - hits) * math.log1p(-share)
        for hits in range(number, trials + 1)
    )
    total = 0.0
    for log in logs:  # beyond the mean each is less than the one before
        term = math.exp(log)
        total += term
        if term < total * 1e-9:
            break
    return total


def worse(old: Answers, new: Answers) -> str:
    """Why the new version is worse than the old one; empty when nothing says so.

    A verdict needs figures that the old version would show once in a million watches, and a
    difference that matters: twice its share of errors, or a 95th percentile beyond twice its own
    and beyond a tenth of a second.
    """
    if new.count < 1:
        return ""
    share = max(old.errors / old.count if old.count else 0.0, OLD_ERRORS_AT_LEAST)
    errors, trials = round(new.errors), round(new.count)
    if (
        errors >= FEWEST_ERRORS
        and errors / trials > 2 * share
        and tail(errors, trials, min(2 * share, 0.999)) < SIGNIFICANCE
    ):
        return (
            f"{errors} of {trials} requests ended with a 5xx ({errors / trials:.1%}); of the "
            f"version before {round(old.errors)} of {round(old.count)}"
        )
    return _slower(old, new)


def _slower(old: Answers, new: Answers) -> str:
    if old.count < FEWEST_REQUESTS or new.count < FEWEST_REQUESTS:
        return ""
    usual = old.p95()
    least = max(2 * usual, SLOW_SECONDS)
    limit = next((b for b in sorted(new.within.keys() & old.within.keys()) if b >= least), math.inf)
    if math.isinf(limit):
        return ""
    slow, trials = round(new.count - new.within[limit]), round(new.count)
    share = max(1 - old.within[limit] / old.count, OLD_SLOW_AT_LEAST)
    if slow > trials * share and tail(slow, trials, min(share, 0.999)) < SIGNIFICANCE:
        return (
            f"{slow} of {trials} requests took longer than {limit:g} s; of the version before "
            f"95 % stayed within {usual:g} s"
        )
    return ""
