"""The application's metrics, right across all gunicorn workers.

With PROMETHEUS_MULTIPROC_DIR set, each process keeps its values in files of that directory and a
scrape adds up all of them. prometheus_client is used as it is: prometheus-flask-exporter's request
counter has no path, and it does not see requests that no route matches.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

disable_created_metrics()

CONTENT_TYPE = CONTENT_TYPE_LATEST
UNMATCHED = "<unmatched>"
"""Path label of a request that no route matches: raw paths would be labels without bound."""
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})

_registry = CollectorRegistry()

REQUESTS = Counter(
    "http_requests_total",
    "Requests answered.",
    ("method", "path", "status"),
    registry=_registry,
)
DURATION = Histogram(
    "http_request_duration_seconds",
    "Time from the first line of a request to its answer, in seconds.",
    ("method", "path"),
    registry=_registry,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
ACTIVE = Gauge(
    "http_active_connections",
    "Requests being answered now.",
    registry=_registry,
    multiprocess_mode="livesum",
)
DB_CONNECTIONS = Gauge(
    "db_connections_active",
    "Open connections to PostgreSQL.",
    registry=_registry,
    multiprocess_mode="livesum",
)
REDIS_COMMANDS = Counter(
    "redis_commands_total",
    "Commands sent to Redis.",
    registry=_registry,
)


def render() -> bytes:
    """All metrics in Prometheus's text format, summed over every process there is or was."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(_registry)
    merged = CollectorRegistry()
    MultiProcessCollector(merged)
    return generate_latest(merged)
