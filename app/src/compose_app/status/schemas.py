"""What the status page shows, and /status.json says; what is not known is null."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from compose_app.health.schemas import State

Verdict = Literal["ok", "attention", "unknown"]
ServiceState = Literal["healthy", "running", "unhealthy", "failed", "stopped"]


class Metrics(BaseModel):
    """Whether there are figures, and why not."""

    available: bool
    reason: str | None


class Release(BaseModel):
    """What serves."""

    slot: str | None
    image: str | None


class Service(BaseModel):
    """A container; `running` means that it has no health check or has not passed one yet."""

    container: str
    service: str
    state: ServiceState
    exit_code: int | None
    """Of one that does not run."""
    started_at: datetime | None
    restarts: int | None
    memory_bytes: int | None
    memory_limit_bytes: int | None


class Targets(BaseModel):
    """What Prometheus scrapes; `down` names job and instance."""

    up: int
    total: int
    down: list[str]


class Latency(BaseModel):
    """Seconds."""

    p50: float | None
    p95: float | None
    p99: float | None


class Traffic(BaseModel):
    """Of the last five minutes, probes left out."""

    requests_per_second: float | None
    error_ratio: float | None
    """Answers of 5xx to all answers."""
    latency_seconds: Latency


class Filesystem(BaseModel):
    """A disk of the host."""

    mountpoint: str
    available_bytes: int
    size_bytes: int
    used_ratio: float


class Memory(BaseModel):
    """The host's."""

    available_bytes: int
    total_bytes: int
    used_ratio: float


class Backup(BaseModel):
    """The last one that succeeded; labels tell several apart."""

    labels: dict[str, str]
    succeeded_at: datetime
    age_seconds: int


class Certificate(BaseModel):
    """The one that the public address shows."""

    name: str
    expires_at: datetime
    days_left: float


class Alert(BaseModel):
    """An alert that fires."""

    name: str
    severity: str | None
    labels: dict[str, str]
    since: datetime | None


class History(BaseModel):
    """The last hour; each series has a value for start, start + step and so on."""

    start: datetime
    step_seconds: int
    series: dict[str, list[float | None]]


class Status(BaseModel):
    """Everything an operator wants to know at a glance."""

    verdict: Verdict
    reasons: list[str]
    """What needs attention, in words."""
    generated_at: datetime
    metrics: Metrics
    database: State
    redis: State
    release: Release
    services: list[Service]
    targets: Targets | None
    traffic: Traffic
    filesystems: list[Filesystem]
    memory: Memory | None
    backups: list[Backup] | None
    """Null when the host's metrics are missing, among which they would be; empty when none is
    configured."""
    certificates: list[Certificate]
    alerts: list[Alert]
    watchdog: bool | None
    """Whether the alert that always fires does: it proves that alerting works."""
    history: History | None
