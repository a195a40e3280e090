"""What the database and Redis have in common: they may be gone, and nothing may hang for it."""

from __future__ import annotations

import time

import structlog

RETRY_AFTER = 2
"""Seconds a client is asked to wait before it tries again."""
FAIL_FAST = 1.0
"""Seconds during which, after a failure, a worker refuses at once instead of trying again.

A sync worker answers one request at a time: were each to wait for its time-out, those behind it
would wait for the sum of them.
"""

_log = structlog.get_logger("compose_app")


class Unavailable(Exception):
    """A dependency does not answer; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is unavailable")
        self.name = name


class FailFast:
    """Remembers that a dependency has just failed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._until = 0.0
        self._down = False

    def check(self) -> None:
        """Refuse at once if the dependency has failed within the last FAIL_FAST seconds.

        Raises:
            Unavailable: it has.
        """
        if self._down and time.monotonic() < self._until:
            raise Unavailable(self.name)

    def failed(self, error: Exception) -> Unavailable:
        """Note a failure and return the exception to raise; the first in a row is logged."""
        if not self._down:
            _log.warning("dependency lost", dependency=self.name, error=str(error).strip())
        self._down = True
        self._until = time.monotonic() + FAIL_FAST
        return Unavailable(self.name)

    def succeeded(self) -> None:
        """Note a success; the first after failures is logged."""
        if self._down:
            self._down = False
            _log.info("dependency back", dependency=self.name)
