"""`compose-app worker`: sends birthday messages through the email service.

A message that could not be sent is tried again later, by the plan and not by the queue, so that it
waits as long as it must. While the service fails altogether the breaker is open: messages stay in
the queue, and none uses up its attempts.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import structlog
from prometheus_client import Counter, Gauge, Histogram

from compose_app import loop
from compose_app.birthdays import broker
from compose_app.birthdays.breaker import Breaker
from compose_app.birthdays.broker import Broker, Delivery
from compose_app.birthdays.email import EmailService, Failed, Refused
from compose_app.birthdays.messages import Message, MessageStore, Retry
from compose_app.birthdays.store import Clock, utc_now
from compose_app.config import WorkerSettings

WAIT = 1.0
"""Seconds to wait for a message, and between looks whether the breaker is still open."""
LEASE = 30.0
"""Seconds, beyond the time-out of the email service, after which a worker that has messages in hand
is taken to have died."""

_log = structlog.get_logger("compose_app.worker")

ATTEMPTS = Counter(
    "birthday_message_attempts_total", "Attempts at sending a message.", ("outcome",)
)
DURATION = Histogram(
    "birthday_message_duration_seconds",
    "Time the email service took to answer, or did not.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
OPEN = Gauge("birthday_breaker_open", "Whether the email service is left alone because it fails.")
OUTCOMES = ("sent", "failed", "refused")


def backoff(
    attempt: int, first: float, most: float, draw: Callable[[float, float], float] = random.uniform
) -> float:
    """Seconds to wait after an attempt: exponential, with "equal jitter".

    Half is fixed, half is drawn; see M. Brooker, Exponential Backoff and Jitter, AWS Architecture
    Blog, 2015.

    Args:
        attempt: how many there have been.
        first: seconds after the first one, before the draw.
        most: seconds it never exceeds.
        draw: from an interval.
    """
    whole = min(most, first * 2 ** min(attempt - 1, 60))
    return float(whole / 2 + draw(0, whole / 2))


class Worker:
    """Work of a loop."""

    outages = (psycopg.Error, *broker.OUTAGES)

    def __init__(
        self,
        store: MessageStore,
        queue: Broker,
        service: EmailService,
        settings: WorkerSettings,
        clock: Clock = utc_now,
    ) -> None:
        self._store = store
        self._queue = queue
        self._service = service
        self._settings = settings
        self._clock = clock
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
        self._threads = ThreadPoolExecutor(settings.concurrency)

    def step(self) -> float:
        """Send as many messages as at once, waiting up to WAIT for the first."""
        self._queue.breathe()
        if wait := self._breaker.wait:
            return min(WAIT, wait)
        # Taken for nothing, a message would come nearer to its limit of deliveries.
        self._store.check()
        # One is enough to find out whether the service is back.
        limit = self._settings.concurrency if self._breaker.closed else 1
        deliveries = self._queue.take(limit, WAIT)
        if deliveries:
            self._settle(deliveries)
        return 0

    def _settle(self, deliveries: list[Delivery]) -> None:
        ids = [delivery.message_id for delivery in deliveries if delivery.message_id is not None]
        lease = self._settings.timeout_seconds + LEASE
        claimed = self._store.claim(ids, self._clock(), lease)
        messages = [message for message in claimed if message.attempts <= self._settings.attempts]
        outcomes = list(self._threads.map(self._attempt, messages))
        self._count(outcomes)
        sent: list[Message] = []
        retries: list[Retry] = []
        refused = [
            (message, "workers have died of it") for message in claimed if message not in messages
        ]
        for message, outcome in zip(messages, outcomes, strict=True):
            match outcome:
                case None:
                    sent.append(message)
                case Failed() if self._excused(message):
                    retries.append(self._retry(message, outcome, counts=False))
                case Failed() if message.attempts < self._settings.attempts:
                    retries.append(self._retry(message, outcome, counts=True))
                case _:
                    refused.append((message, str(outcome)))
        self._store.record(self._clock(), sent, retries, refused)
        rejected = {message.id for message, _ in refused}
        for delivery in deliveries:
            if delivery.message_id is None or delivery.message_id in rejected:
                self._queue.reject(delivery)
            else:
                self._queue.done(delivery)

    def _attempt(self, message: Message) -> Failed | Refused | None:
        try:
            with DURATION.time():
                self._service.send(
                    # Of the message, whatever its number: the same after a restore.
                    f"birthday-{message.user_id}-{message.year}",
                    message.email,
                    f"Happy birthday, {message.first_name}!",
                    f"Dear {message.first_name} {message.last_name},\n\nhappy birthday!\n",
                )
        except (Failed, Refused) as error:
            return error
        return None

    def _count(self, outcomes: list[Failed | Refused | None]) -> None:
        for outcome in outcomes:
            name = "sent" if outcome is None else type(outcome).__name__.lower()
            ATTEMPTS.labels(name).inc()
        if not outcomes:
            return
        closed = self._breaker.closed
        if all(isinstance(outcome, Failed) for outcome in outcomes):
            self._breaker.failed()
        else:
            self._breaker.succeeded()
        OPEN.set(not self._breaker.closed)
        if closed and not self._breaker.closed:
            _log.warning("the email service is left alone", error=str(outcomes[0]))
        if self._breaker.closed and not closed:
            _log.info("the email service is back")

    def _excused(self, message: Message) -> bool:
        """Whether a failure is the email service's and not the message's, for as long as it may."""
        patience = datetime.timedelta(days=self._settings.catch_up_days)
        return not self._breaker.closed and self._clock() - message.due_at < patience

    def _retry(self, message: Message, failure: Failed, *, counts: bool) -> Retry:
        settings = self._settings
        seconds = backoff(message.attempts, settings.backoff_seconds, settings.backoff_max_seconds)
        after = min(failure.after, settings.backoff_max_seconds)
        next_at = self._clock() + datetime.timedelta(seconds=max(seconds, after))
        return Retry(message, next_at, str(failure), counts)

    def lost(self) -> None:
        """Connect anew; what was in hand comes back, and is tried when its time in hand is over."""
        self._store.close()
        self._queue.close()

    def leave(self) -> None:
        """Disconnect; what was not begun goes back to the queue."""
        self.lost()
        self._threads.shutdown()
        self._service.close()


def main(settings: WorkerSettings) -> int:
    """Send until SIGTERM or SIGINT; what is in hand is finished first.

    Returns:
        0.
    """
    for outcome in OUTCOMES:
        ATTEMPTS.labels(outcome)  # from 0 on: an increase to 1 must show
    store = MessageStore(
        settings.database_url, settings.database_password.get_secret_value(), "compose-app worker"
    )
    queue = Broker(
        settings.amqp_url,
        settings.amqp_password.get_secret_value(),
        settings.queue,
        settings.concurrency,
    )
    token = settings.email_token.get_secret_value() if settings.email_token else None
    service = EmailService(
        settings.email_url, token, settings.timeout_seconds, settings.concurrency
    )
    return loop.main(Worker(store, queue, service, settings), "worker", settings)
