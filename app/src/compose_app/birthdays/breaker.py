"""A circuit breaker: does not ask a service that fails, and finds out when it is back.

The libraries for this count by wall clock, which may jump, or hold a lock for the time of the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Closed, until too many failures in a row open it; then one trial at a time.

    The pattern is Michael Nygard's, Release It!, 2nd edition, chapter 5.
    """

    def __init__(
        self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take how many failures open it, and how long it stays open before a trial."""
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._opened_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether the service is taken to be well."""
        return self._failures < self._limit

    @property
    def wait(self) -> float:
        """Seconds until the service may be asked; 0 for now."""
        if self.closed:
            return 0.0
        return max(0.0, self._opened_at + self._seconds - self._clock())

    def succeeded(self) -> None:
        """Note that the service has answered."""
        self._failures = 0

    def failed(self) -> None:
        """Note that it has not, or only to say that it cannot."""
        self._failures = min(self._failures + 1, self._limit)
        if not self.closed:
            self._opened_at = self._clock()
