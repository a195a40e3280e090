"""Usage as bars: buckets in, the geometry of an SVG out."""

from __future__ import annotations

import datetime
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 720, 120
_GAP = 0.2
"""Share of a bar's place that is left free."""

SPANS = {
    "minute": (datetime.timedelta(minutes=1), 60),
    "hour": (datetime.timedelta(hours=1), 48),
    "day": (datetime.timedelta(days=1), 30),
}
"""How long a bucket is, and how many of them are shown."""


@dataclass(frozen=True)
class Bar:
    """One bucket."""

    x: float
    y: float
    width: float
    height: float
    moment: str
    quantity: float
    events: int


@dataclass(frozen=True)
class Chart:
    """One metric."""

    metric: str
    total: float
    top: float
    """What the upper edge stands for."""
    bars: list[Bar]


def since(bucket: str, now: datetime.datetime) -> datetime.datetime:
    """First moment of the first bucket that is shown, the present one being the last.

    Args:
        bucket: a name in SPANS.
        now: in UTC.
    """
    length, count = SPANS[bucket]
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    present = midnight + (now - midnight) // length * length
    return present - (count - 1) * length


def charts(buckets: list[dict[str, Any]], bucket: str, start: datetime.datetime) -> list[Chart]:
    """A chart for each metric.

    Args:
        buckets: as /api/usage has them.
        bucket: a name in SPANS.
        start: first moment of the first bucket.
    """
    length, count = SPANS[bucket]
    place = WIDTH / count
    metrics: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in buckets:
        metrics[item["metric"]].append(item)
    found = []
    for metric, items in metrics.items():
        top = max(item["quantity"] for item in items) or 1
        bars = []
        for item in items:
            moment = datetime.datetime.fromisoformat(item["bucket"])
            height = HEIGHT * item["quantity"] / top
            bars.append(
                Bar(
                    round((moment - start) / length * place + place * _GAP / 2, 1),
                    round(HEIGHT - height, 1),
                    round(place * (1 - _GAP), 1),
                    round(height, 1),
                    f"{moment:%Y-%m-%d %H:%M}",
                    item["quantity"],
                    item["events"],
                )
            )
        found.append(Chart(metric, sum(item["quantity"] for item in items), top, bars))
    return found
