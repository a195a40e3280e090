"""Asks the database, Redis and Prometheus, at the same time, and puts the answers together."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from compose_app.db import Database
from compose_app.health import store as health
from compose_app.health.schemas import State
from compose_app.redis import Cache
from compose_app.status.prometheus import (
    DEADLINE,
    STEP,
    WINDOW,
    Prometheus,
    Question,
    Reading,
    Sample,
)
from compose_app.status.schemas import (
    Alert,
    Backup,
    Certificate,
    Filesystem,
    History,
    Latency,
    Memory,
    Metrics,
    Release,
    Service,
    ServiceState,
    Status,
    Targets,
    Traffic,
)

WATCHDOG = "Watchdog"
COLLECTOR_LATE = 120
"""Seconds after which the figures about containers count as old; they are made every 15 s."""
_NO_DISK = frozenset({"tmpfs", "devtmpfs", "ramfs", "squashfs", "iso9660", "nsfs"})
_HINT = "Is the monitoring profile off? `make up-all` starts it."

_REQUESTS = 'job="api",path!~"/health.*|/metrics"'
_ALL = f"sum(rate(http_requests_total{{{_REQUESTS}}}[5m]))"
_FAILED = f'sum(rate(http_requests_total{{{_REQUESTS},status=~"5.."}}[5m]))'
_DISK = f'job="node",fstype!~"{"|".join(sorted(_NO_DISK))}"'


def _quantile(quantile: float) -> str:
    buckets = f"sum by (le) (rate(http_request_duration_seconds_bucket{{{_REQUESTS}}}[5m]))"
    return f"histogram_quantile({quantile}, {buckets})"


_QUESTION = Question(
    metrics=(
        "ALERTS",
        "ALERTS_FOR_STATE",
        "backup_last_success_timestamp_seconds",
        "compose_stack_release_info",
        "container_exit_code",
        "container_health",
        "container_memory_working_set_bytes",
        "container_metrics_collected_timestamp_seconds",
        "container_restarts_total",
        "container_running",
        "container_spec_memory_limit_bytes",
        "container_start_time_seconds",
        "node_filesystem_avail_bytes",
        "node_filesystem_size_bytes",
        "node_memory_MemAvailable_bytes",
        "node_memory_MemTotal_bytes",
        "probe_ssl_earliest_cert_expiry",
        "up",
    ),
    history={
        "requests_per_second": _ALL,
        # Without a single failure there is no series of failures.
        "error_ratio": f"({_FAILED} or 0 * {_ALL}) / {_ALL}",
        "latency_p50_seconds": _quantile(0.5),
        "latency_p95_seconds": _quantile(0.95),
        "latency_p99_seconds": _quantile(0.99),
        "memory_used_ratio": (
            'max(1 - node_memory_MemAvailable_bytes{job="node"}'
            ' / node_memory_MemTotal_bytes{job="node"})'
        ),
        "fullest_disk_used_ratio": (
            f"max(1 - node_filesystem_avail_bytes{{{_DISK}}}"
            f" / node_filesystem_size_bytes{{{_DISK}}})"
        ),
    },
)


def _moment(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=0)
    except (ValueError, OverflowError, OSError):
        return None


class _Samples:
    """Samples by name of metric."""

    def __init__(self, samples: list[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    def __getitem__(self, name: str) -> list[Sample]:
        return self._by_name.get(name, [])

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Values of a metric by the values of labels."""
        return {
            tuple(sample.labels.get(label, "") for label in labels): sample.value
            for sample in self[name]
        }


_HEALTH: dict[float | None, ServiceState] = {None: "running", 1.0: "healthy"}
_WORST_FIRST: tuple[ServiceState, ...] = ("failed", "unhealthy", "running", "healthy", "stopped")


def _services(samples: _Samples) -> Iterator[Service]:
    running = samples.by("container_running", "name", "service")
    health_ = samples.by("container_health", "name")
    exit_codes = samples.by("container_exit_code", "name")
    started = samples.by("container_start_time_seconds", "name")
    restarts = samples.by("container_restarts_total", "name")
    memory = samples.by("container_memory_working_set_bytes", "name")
    limits = samples.by("container_spec_memory_limit_bytes", "name")
    for (name, service), runs in running.items():
        key = (name,)
        exit_code = None
        state: ServiceState
        if runs:
            state = _HEALTH.get(health_.get(key), "unhealthy")
        else:
            exit_code = int(exit_codes[key]) if key in exit_codes else None
            state = "failed" if exit_code else "stopped"
        yield Service(
            container=name,
            service=service or name,
            state=state,
            exit_code=exit_code,
            started_at=_moment(started[key]) if runs and started.get(key) else None,
            restarts=int(restarts[key]) if key in restarts else None,
            memory_bytes=int(memory[key]) if runs and key in memory else None,
            memory_limit_bytes=int(limits[key]) if limits.get(key) else None,
        )


def _filesystems(samples: _Samples) -> list[Filesystem]:
    """Every disk once, under the shortest of the paths it is mounted at, the fullest first."""
    labels = ("device", "fstype", "mountpoint")
    available = samples.by("node_filesystem_avail_bytes", *labels)
    disks: dict[tuple[str, float], Filesystem] = {}
    for key, size in samples.by("node_filesystem_size_bytes", *labels).items():
        device, kind, mountpoint = key
        if kind in _NO_DISK or size <= 0 or key not in available:
            continue
        known = disks.get((device, size))
        if known is None or len(mountpoint) < len(known.mountpoint):
            disks[device, size] = Filesystem(
                mountpoint=mountpoint,
                available_bytes=int(available[key]),
                size_bytes=int(size),
                used_ratio=1 - available[key] / size,
            )
    return sorted(disks.values(), key=lambda disk: (-disk.used_ratio, disk.mountpoint))


def _memory(samples: _Samples) -> Memory | None:
    for available in samples["node_memory_MemAvailable_bytes"]:
        for total in samples["node_memory_MemTotal_bytes"]:
            if total.value > 0:
                return Memory(
                    available_bytes=int(available.value),
                    total_bytes=int(total.value),
                    used_ratio=1 - available.value / total.value,
                )
    return None


def _backups(samples: _Samples, now: int) -> list[Backup]:
    """The oldest first: that is the one to look at."""
    backups = []
    for sample in samples["backup_last_success_timestamp_seconds"]:
        succeeded_at = _moment(sample.value)
        if succeeded_at and sample.value > 0:  # 0 is how a metric says "never"
            labels = {
                name: value
                for name, value in sorted(sample.labels.items())
                if name not in ("__name__", "job", "instance")
            }
            age = max(now - int(sample.value), 0)
            backups.append(Backup(labels=labels, succeeded_at=succeeded_at, age_seconds=age))
    return sorted(backups, key=lambda backup: -backup.age_seconds)


def _certificates(samples: _Samples, now: int) -> list[Certificate]:
    certificates = [
        Certificate(
            name=sample.labels.get("instance", ""),
            expires_at=expires_at,
            days_left=round((sample.value - now) / 86400, 2),
        )
        for sample in samples["probe_ssl_earliest_cert_expiry"]
        if (expires_at := _moment(sample.value))
    ]
    return sorted(certificates, key=lambda certificate: certificate.days_left)


def _alerts(samples: _Samples) -> list[Alert]:
    def identity(sample: Sample) -> tuple[tuple[str, str], ...]:
        names = sample.labels.keys() - {"__name__", "alertstate"}
        return tuple((name, sample.labels[name]) for name in sorted(names))

    since = {identity(sample): sample.value for sample in samples["ALERTS_FOR_STATE"]}
    order = {"critical": 0, "warning": 1}
    alerts = []
    for sample in samples["ALERTS"]:
        if sample.labels.get("alertstate") == "firing":
            key = identity(sample)
            labels = dict(key)
            name = labels.pop("alertname", "")
            severity = labels.pop("severity", None)
            active = _moment(since[key]) if key in since else None
            alerts.append(Alert(name=name, severity=severity, labels=labels, since=active))
    return sorted(alerts, key=lambda alert: (order.get(alert.severity or "", 2), alert.name))


def _targets(samples: _Samples) -> Targets | None:
    up = samples.by("up", "job", "instance")
    down = sorted(" ".join(key) for key, value in up.items() if value != 1)
    return Targets(up=len(up) - len(down), total=len(up), down=down) if up else None


def _traffic(history: dict[str, list[float | None]] | None) -> Traffic:
    def now(name: str) -> float | None:
        return history[name][-1] if history else None

    return Traffic(
        requests_per_second=now("requests_per_second"),
        error_ratio=now("error_ratio"),
        latency_seconds=Latency(
            p50=now("latency_p50_seconds"),
            p95=now("latency_p95_seconds"),
            p99=now("latency_p99_seconds"),
        ),
    )


def _reasons(status: Status, collected: dict[tuple[str, ...], float], now: int) -> Iterator[str]:
    if status.database != "ok":
        yield "The database does not answer."
    if status.redis != "ok":
        yield "Redis does not answer."
    for alert in status.alerts:
        yield f"The alert {alert.name} fires."
    for service in status.services:
        if service.state == "unhealthy":
            yield f"The container {service.container} is unhealthy."
        if service.state == "failed":
            yield f"The container {service.container} has failed (exit code {service.exit_code})."
    for target in status.targets.down if status.targets else ():
        yield f"Prometheus does not reach its target {target}."
    if collected and (age := now - int(max(collected.values()))) > COLLECTOR_LATE:
        yield f"What is said of containers is {age} s old: their collector has stopped."


class StatusStore:
    """Where the page's values come from."""

    def __init__(
        self, database: Database, redis: Iterable[Cache], prometheus: Prometheus, slot: str | None
    ) -> None:
        self._database = database
        self._redis = redis
        self._prometheus = prometheus
        self._slot = slot

    def read(self) -> Status:
        """Everything there is to know within 2.5 s."""
        started = time.monotonic()
        now = int(time.time())
        job = self._prometheus.ask(_QUESTION, now)
        redis_state: list[State] = []
        # Within the request's context, so that what it logs carries the request's id.
        context = contextvars.copy_context()
        other = threading.Thread(
            target=context.run, args=(lambda: redis_state.append(health.redis_state(self._redis)),)
        )
        other.start()
        database_state = health.database_state(self._database)
        other.join()
        if self._prometheus.url:
            reading = self._prometheus.answer(job, started + DEADLINE - time.monotonic())
        else:
            reading = Reading()
        return self._assemble(
            now, database_state, redis_state[0] if redis_state else "unavailable", reading
        )

    def _assemble(self, now: int, database: State, redis: State, reading: Reading) -> Status:
        samples = _Samples(reading.samples or [])
        services = sorted(
            _services(samples),
            key=lambda each: (_WORST_FIRST.index(each.state), each.service, each.container),
        )
        alerts = _alerts(samples)
        release = [sample.labels for sample in samples["compose_stack_release_info"]]
        # What answers here serves, so its own slot is right even during a switch.
        mine = [labels for labels in release if self._slot in (None, labels.get("slot"))]
        moment = _moment(now) or datetime.now(UTC)
        memory, backups = _memory(samples), _backups(samples, now)
        status = Status(
            verdict="ok",
            reasons=[],
            generated_at=moment,
            metrics=self._metrics(reading),
            database=database,
            redis=redis,
            release=Release(
                slot=self._slot or (mine[0].get("slot") if mine else None),
                image=mine[0].get("image") if mine else None,
            ),
            services=services,
            targets=_targets(samples),
            traffic=_traffic(reading.history),
            filesystems=_filesystems(samples),
            memory=memory,
            # They travel with the host's metrics: without these their absence says nothing.
            backups=backups if backups or memory else None,
            certificates=_certificates(samples, now),
            alerts=[alert for alert in alerts if alert.name != WATCHDOG],
            watchdog=any(alert.name == WATCHDOG for alert in alerts) if samples["up"] else None,
            history=History(
                start=_moment(now - WINDOW) or moment, step_seconds=STEP, series=reading.history
            )
            if reading.history
            else None,
        )
        collected = samples.by("container_metrics_collected_timestamp_seconds", "instance")
        status.reasons = list(dict.fromkeys(_reasons(status, collected, now)))
        if status.reasons:
            status.verdict = "attention"
        elif not status.metrics.available or not samples["up"]:
            status.verdict = "unknown"
        return status

    def _metrics(self, reading: Reading) -> Metrics:
        if not self._prometheus.url:
            return Metrics(available=False, reason=f"No Prometheus is configured. {_HINT}")
        if reading.trouble:
            reason = f"Prometheus at {self._prometheus.address} {reading.trouble}. {_HINT}"
            return Metrics(available=reading.samples is not None, reason=reason)
        if not reading.samples:
            return Metrics(
                available=True, reason="Prometheus has no data yet: it was started just now."
            )
        return Metrics(available=True, reason=None)
