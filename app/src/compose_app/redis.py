"""Redis: one connection a worker, with hard time limits."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from compose_app import metrics
from compose_app.dependencies import FailFast

TIMEOUT = 0.75
"""Seconds to connect, and to wait for an answer."""

Command = tuple[str | bytes | int, ...]


def _client(url: str, password: str) -> redis.Redis:
    return redis.Redis.from_url(
        _with_user(url),
        password=password,
        socket_connect_timeout=TIMEOUT,
        socket_timeout=TIMEOUT,
        socket_keepalive=True,
        max_connections=1,
        # A connection that the server has closed meanwhile is noticed before it is used.
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
    )


def _with_user(url: str) -> str:
    """A URL without user signs in as `default`; that is what an absent name means to Redis."""
    parts = urlsplit(url)
    if parts.username:
        return url
    return urlunsplit(parts._replace(netloc=f"{quote('default')}@{parts.netloc}"))


class Cache:
    """The worker's connection to Redis. Made before fork, connected after it."""

    def __init__(self, url: str, password: str, name: str = "redis") -> None:
        """Take the name by which the log speaks of it."""
        self.client = _client(url, password)
        """For libraries that bring their own commands; they handle redis.RedisError."""
        self._fail_fast = FailFast(name)

    def execute(self, *commands: Command) -> list[Any]:
        """Send commands in one round trip and return their answers in order.

        Raises:
            compose_app.dependencies.Unavailable: when Redis refuses a command or does not answer,
                within 0.75 s on an open connection and 1.5 s on a new one.
        """
        self._fail_fast.check()
        pipeline = self.client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            answers: list[Any] = pipeline.execute()
        except redis.RedisError as error:
            raise self._fail_fast.failed(error) from error
        metrics.REDIS_COMMANDS.inc(len(commands))
        self._fail_fast.succeeded()
        return answers

    def close(self) -> None:
        """Close the connection; the next command opens another."""
        self.client.close()
