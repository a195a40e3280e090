"""What the application measures; `exporter` exposes it.

With PROMETHEUS_MULTIPROC_DIR set, each process keeps its values in files of that directory and a
scrape adds up all of them.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()

# Without a registry here: each application's exporter has one, and takes these into it.
REQUESTS = Counter(
    "http_requests_total",
    "Requests answered.",
    ("method", "path", "status"),
    registry=None,
)
DURATION = Histogram(
    "http_request_duration_seconds",
    "Time from the request's arrival in the application to its answer.",
    ("method", "path", "status"),
    registry=None,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
ACTIVE = Gauge(
    "http_active_connections",
    "Requests being answered now.",
    registry=None,
    multiprocess_mode="livesum",
)
DB_CONNECTIONS = Gauge(
    "db_connections_active",
    "Open connections to PostgreSQL.",
    registry=None,
    multiprocess_mode="livesum",
)
REDIS_COMMANDS = Counter(
    "redis_commands_total",
    "Commands sent to Redis.",
    registry=None,
)
ALL = (REQUESTS, DURATION, ACTIVE, DB_CONNECTIONS, REDIS_COMMANDS)
