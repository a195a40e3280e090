"""Small charts of the last hour: numbers in, the geometry of an SVG out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from compose_app.status import text
from compose_app.status.schemas import History

WIDTH, HEIGHT = 320, 110
LEFT, RIGHT, TOP, BOTTOM = 4, 4, 18, 16
"""Space round the plot, in which the texts stand."""
EVERY = 5
"""The table has a row for every fifth point: each ten minutes."""


@dataclass(frozen=True)
class Line:
    """One series."""

    name: str
    path: str
    dash: str
    """Told apart without colours: value of stroke-dasharray."""
    number: int
    summary: str


@dataclass(frozen=True)
class Chart:
    """A picture, and the same as a table."""

    id: str
    title: str
    description: str
    top: str
    """What the upper edge stands for."""
    lines: list[Line]
    rows: list[tuple[datetime, list[str]]]


@dataclass(frozen=True)
class _Plan:
    id: str
    title: str
    series: dict[str, str]
    """Words for each series, by its name in the history."""
    format: Callable[[float | None], str]
    least_top: float
    """The scale does not shrink below: else noise would look like a mountain."""


_PLANS = (
    _Plan("requests", "Requests", {"requests_per_second": "requests"}, text.rate, 1),
    _Plan("errors", "Errors", {"error_ratio": "share of 5xx"}, text.ratio, 0.01),
    _Plan(
        "latency",
        "Latency",
        {
            "latency_p50_seconds": "p50",
            "latency_p95_seconds": "p95",
            "latency_p99_seconds": "p99",
        },
        text.seconds,
        0.01,
    ),
    _Plan("memory", "Memory", {"memory_used_ratio": "used"}, text.ratio, 1),
    _Plan("disk", "Fullest disk", {"fullest_disk_used_ratio": "used"}, text.ratio, 1),
)
_DASHES = ("", "5 3", "1.5 3")


def nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not below a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    for step in (1, 2, 5):
        if value <= step * power * (1 + 1e-9):
            return step * power
    return 10 * power


def path(points: list[float | None], top: float) -> str:
    """An SVG path; where a value is missing there is a gap, and one alone makes a dot."""
    step = (WIDTH - LEFT - RIGHT) / max(len(points) - 1, 1)
    plot = HEIGHT - TOP - BOTTOM
    parts: list[str] = []
    drawing = False
    for index, value in enumerate(points):
        if value is None:
            drawing = False
            continue
        x = LEFT + index * step
        y = TOP + plot * (1 - min(max(value / top, 0), 1))
        parts.append(f"{'L' if drawing else 'M'}{x:.1f} {y:.1f}")
        if not drawing and (index + 1 == len(points) or points[index + 1] is None):
            parts.append("h0.1")
        drawing = True
    return "".join(parts)


def _chart(plan: _Plan, history: History) -> Chart:
    known = {name: history.series.get(name, []) for name in plan.series}
    values = [value for points in known.values() for value in points if value is not None]
    top = nice(max(plan.least_top, *values)) if values else plan.least_top
    lines = []
    for number, (name, words) in enumerate(plan.series.items()):
        present = [value for value in known[name] if value is not None]
        if present:
            summary = (
                f"{words}: from {plan.format(min(present))} to {plan.format(max(present))}, "
                f"now {plan.format(known[name][-1])}"
            )
        else:
            summary = f"{words}: no data"
        lines.append(Line(words, path(known[name], top), _DASHES[number], number, summary))
    length = max((len(points) for points in known.values()), default=0)
    rows = [
        (
            history.start + timedelta(seconds=index * history.step_seconds),
            [plan.format(points[index]) for points in known.values()],
        )
        for index in range(length - 1, -1, -EVERY)
    ]
    return Chart(
        id=plan.id,
        title=plan.title,
        description="The last hour. " + "; ".join(line.summary for line in lines) + ".",
        top=plan.format(top),
        lines=lines,
        rows=rows,
    )


def charts(history: History | None) -> list[Chart]:
    """The charts of the page; none without history."""
    return [_chart(plan, history) for plan in _PLANS] if history else []
