"""Settings, read from the environment and from secret files, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

LogLevel = Literal["debug", "info", "warning", "error"]


class ConfigError(Exception):
    """The environment is incomplete or wrong; `problems` names everything that is."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _url(schemes: tuple[str, ...], value: object) -> str:
    text = str(value)
    try:
        parts = urlsplit(text)
        _ = parts.port  # parsed, and refused, on access
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from error
    if parts.scheme not in schemes:
        raise ValueError(f"must start with {schemes[0]}://")
    if not parts.hostname:
        raise ValueError("names no host")
    if parts.password is not None:
        raise ValueError("holds a password: put it in the matching *_PASSWORD_FILE")
    return text


def _postgres_url(value: object) -> str:
    return _url(("postgresql", "postgres"), value)


def _redis_url(value: object) -> str:
    return _url(("redis", "rediss"), value)


def _amqp_url(value: object) -> str:
    return _url(("amqp",), value)


def _http_url(value: object) -> str:
    text = _url(("http", "https"), value)
    parts = urlsplit(text)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must have no user, query or fragment")
    return text


def _secret_file(value: object) -> object:
    """Read a secret; trailing newlines are not part of it."""
    try:
        secret = Path(str(value)).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"cannot read {value}: {reason}") from error
    if not secret:
        raise ValueError(f"{value} is empty")
    return secret


PostgresUrl = Annotated[str, BeforeValidator(_postgres_url)]
RedisUrl = Annotated[str, BeforeValidator(_redis_url)]
AmqpUrl = Annotated[str, BeforeValidator(_amqp_url)]
HttpUrl = Annotated[str, BeforeValidator(_http_url)]
SecretFromFile = Annotated[SecretStr, BeforeValidator(_secret_file)]


def _problems(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        name = str(detail["loc"][0]) if detail["loc"] else "environment"
        message = "is not set" if detail["type"] == "missing" else detail["msg"]
        lines.append(f"{name}: {message.removeprefix('Value error, ')}")
    return lines


class _Environ(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings; a variable that is empty counts as not set.

        Raises:
            ConfigError: names every problem at once.
        """
        source: dict[str, Any] = {
            name: value for name, value in (environ or os.environ).items() if value != ""
        }
        try:
            return cls.model_validate(source)
        except ValidationError as error:
            raise ConfigError(_problems(error)) from None


class ServerSettings(_Environ):
    """What the gunicorn master needs; no secret among it."""

    application: Literal["api", "query"] = Field("api", alias="API_APPLICATION")
    slot: Literal["blue", "green"] = Field("blue", alias="API_SLOT")
    socket_dir: Path | None = Field(None, alias="API_SOCKET_DIR")
    scale: int = Field(64, alias="API_SCALE", ge=1, le=64)
    """Highest index of a socket in `socket_dir`: how many instances may share it."""
    workers: int = Field(2, alias="WEB_CONCURRENCY", ge=1, le=64)
    reload: bool = Field(False, alias="API_RELOAD")
    log_level: LogLevel = Field("info", alias="API_LOG_LEVEL")
    run_dir: Path = Field(Path("/tmp"), alias="API_RUN_DIR")  # noqa: S108 - the container's own
    """Where this instance records the path of its socket, for the health check."""
    worker_tmp_dir: Path = Field(Path("/dev/shm"), alias="API_WORKER_TMP_DIR")  # noqa: S108 - heartbeats must not wait for a disk
    metrics_port: int = Field(9100, alias="METRICS_PORT", ge=0, le=65535)
    """TCP port of the metrics listener; 0 turns it off."""
    metrics_host: str | None = Field(None, alias="METRICS_HOST")
    """Name, of this container or of any other, in the network whose address the metrics listener
    binds; absent, loopback."""
    metrics_dir: Path = Field(Path("/tmp/metrics"), alias="PROMETHEUS_MULTIPROC_DIR")  # noqa: S108

    @property
    def sockets(self) -> Path:
        """Directory of the slot's sockets."""
        return self.socket_dir or Path("/run/sockets") / self.slot


class DatabaseSettings(_Environ):
    """What every application needs, and all that the query service does."""

    log_level: LogLevel = Field("info", alias="API_LOG_LEVEL")
    database_url: PostgresUrl = Field(alias="DATABASE_URL")
    database_password: SecretFromFile = Field(alias="DATABASE_PASSWORD_FILE")


class Settings(DatabaseSettings):
    """What the API needs to answer requests."""

    slot: Literal["blue", "green"] | None = Field(None, alias="API_SLOT")
    redis_cache_url: RedisUrl = Field(alias="REDIS_CACHE_URL")
    redis_cache_password: SecretFromFile = Field(alias="REDIS_CACHE_PASSWORD_FILE")
    redis_queue_url: RedisUrl | None = Field(None, alias="REDIS_QUEUE_URL")
    redis_queue_password: SecretFromFile | None = Field(None, alias="REDIS_QUEUE_PASSWORD_FILE")
    usage_events: bool = Field(False, alias="API_USAGE_EVENTS")
    """Whether usage events are accepted: somebody must be there to count them."""
    usage_late_days: int = Field(35, alias="USAGE_LATE_DAYS", ge=1)
    """How many days ago the oldest usage event that is accepted may have been."""
    operator_password: SecretFromFile | None = Field(None, alias="OPERATOR_PASSWORD_FILE")
    """Of the user `operator`, who may see /status; absent, there is no such page."""
    prometheus_url: HttpUrl | None = Field(None, alias="PROMETHEUS_URL")
    """Where /status gets its figures; absent, it shows what the application itself knows."""

    @model_validator(mode="after")
    def _queue_as_a_whole(self) -> Self:
        if (self.redis_queue_url is None) != (self.redis_queue_password is None):
            raise ValueError("set both REDIS_QUEUE_URL and REDIS_QUEUE_PASSWORD_FILE, or neither")
        return self


class MigrationSettings(_Environ):
    """What `compose-app migrate` needs: the owner of the schema, not the application's role."""

    log_level: LogLevel = Field("info", alias="API_LOG_LEVEL")
    database_url: PostgresUrl = Field(alias="MIGRATION_DATABASE_URL")
    database_password: SecretFromFile = Field(alias="MIGRATION_DATABASE_PASSWORD_FILE")
    wait_seconds: int = Field(60, alias="MIGRATION_WAIT_SECONDS", ge=1, le=600)
    """Longest wait for the database to accept connections, and for another migration to end."""
    seed_demo_data: bool = Field(False, alias="API_SEED_DEMO_DATA")


class ProcessSettings(DatabaseSettings):
    """What every process beside the API needs."""

    metrics_port: int = Field(9100, alias="METRICS_PORT", ge=0, le=65535)
    """TCP port of the metrics listener; 0 turns it off."""
    metrics_host: str | None = Field(None, alias="METRICS_HOST")
    """Name in the network whose address the metrics listener binds; absent, loopback."""
    run_dir: Path = Field(Path("/tmp"), alias="API_RUN_DIR")  # noqa: S108 - the container's own
    """Where the process notes that it is alive, for the health check."""


class ProcessorSettings(ProcessSettings):
    """What `compose-app processor` needs."""

    redis_queue_url: RedisUrl = Field(alias="REDIS_QUEUE_URL")
    redis_queue_password: SecretFromFile = Field(alias="REDIS_QUEUE_PASSWORD_FILE")


class AggregatorSettings(ProcessSettings):
    """What `compose-app aggregator` needs: how long usage is kept, by its own time, in days."""

    late_days: int = Field(alias="USAGE_LATE_DAYS", ge=1)
    events_keep_days: int = Field(alias="USAGE_EVENTS_KEEP_DAYS", ge=1)
    minutes_keep_days: int = Field(alias="USAGE_MINUTES_KEEP_DAYS", ge=1)
    hours_keep_days: int = Field(alias="USAGE_HOURS_KEEP_DAYS", ge=1)

    @model_validator(mode="after")
    def _late_events_find_their_place(self) -> Self:
        if self.late_days >= min(
            self.events_keep_days, self.minutes_keep_days, self.hours_keep_days
        ):
            raise ValueError("USAGE_LATE_DAYS must be less than each of USAGE_*_KEEP_DAYS")
        return self


class _BirthdaySettings(ProcessSettings):
    amqp_url: AmqpUrl = Field(alias="AMQP_URL")
    amqp_password: SecretFromFile = Field(alias="AMQP_PASSWORD_FILE")
    queue: str = Field("birthdays", alias="BIRTHDAYS_QUEUE", pattern=r"^[a-z][a-z0-9.-]{0,63}$")
    """Of messages to be sent; `<queue>.dead` takes those that cannot be."""
    catch_up_days: int = Field(7, alias="BIRTHDAYS_CATCH_UP_DAYS", ge=1, le=31)
    """For how long after it was due a message waits for the end of an outage: of the scheduler, and
    it is not sent; of the email service, and its attempts count."""


class SchedulerSettings(_BirthdaySettings):
    """What `compose-app scheduler` needs."""

    interval_seconds: float = Field(1.0, alias="BIRTHDAYS_INTERVAL_SECONDS", ge=0.1, le=60)
    """Between looks for what is due."""
    ahead_hours: int = Field(48, alias="BIRTHDAYS_AHEAD_HOURS", ge=30, le=240)
    """How far ahead messages are planned: more than zones lie apart."""


class WorkerSettings(_BirthdaySettings):
    """What `compose-app worker` needs."""

    email_url: HttpUrl = Field(alias="EMAIL_URL")
    email_token: SecretFromFile | None = Field(None, alias="EMAIL_TOKEN_FILE")
    timeout_seconds: float = Field(10, alias="BIRTHDAYS_TIMEOUT_SECONDS", ge=1, le=15)
    """For an answer of the email service: less than the broker waits for a sign of the worker."""
    concurrency: int = Field(4, alias="BIRTHDAYS_CONCURRENCY", ge=1, le=64)
    """Messages sent at once."""
    attempts: int = Field(8, alias="BIRTHDAYS_ATTEMPTS", ge=1, le=100)
    """At a message, before it is given up."""
    backoff_seconds: float = Field(30, alias="BIRTHDAYS_BACKOFF_SECONDS", ge=0.1)
    """Between the first attempt and the second; doubled from one to the next."""
    backoff_max_seconds: float = Field(3600, alias="BIRTHDAYS_BACKOFF_MAX_SECONDS", ge=0.1)
    breaker_failures: int = Field(5, alias="BIRTHDAYS_BREAKER_FAILURES", ge=1)
    """Times in a row that nothing can be sent before the email service is left alone."""
    breaker_seconds: float = Field(60, alias="BIRTHDAYS_BREAKER_SECONDS", ge=0.1)
    """For which it is left alone, before one message is tried."""


def check(environ: Mapping[str, str] | None = None) -> None:
    """Check everything the environment sets; the migration's part only if any of it is there.

    Raises:
        ConfigError: names every problem of every part at once.
    """
    env = os.environ if environ is None else environ
    queries = env.get("API_APPLICATION") == "query"
    parts: list[type[_Environ]] = [ServerSettings, DatabaseSettings if queries else Settings]
    if any(name.startswith("MIGRATION_") and value for name, value in env.items()):
        parts.append(MigrationSettings)
    problems: list[str] = []
    for part in parts:
        try:
            part.from_environ(env)
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigError(problems)
