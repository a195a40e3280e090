"""`compose-app scheduler`: plans birthday messages and puts those that are due into the queue.

Two may run, as during a release; one of them acts at a time. Nothing depends on being in time: what
has come due while nobody looked is found the same way.
"""

from __future__ import annotations

import datetime
import time

import psycopg
import structlog
from prometheus_client import Counter, Gauge

from compose_app import loop
from compose_app.birthdays import broker
from compose_app.birthdays.broker import Broker
from compose_app.birthdays.messages import Figures, MessageStore
from compose_app.birthdays.store import Clock, utc_now
from compose_app.config import SchedulerSettings

AT_ONCE = 500
"""Messages put into the queue in one turn."""
STANDBY = 1.0
"""Seconds between attempts to act, while another scheduler does."""
PLAN_INTERVAL = 3600.0
"""Seconds between plans: far less than is planned ahead."""
LOST_INTERVAL = 60.0
"""Seconds between looks for messages that the broker has lost."""
LOST_AFTER = datetime.timedelta(hours=1)
"""How long a message has been queued, and the queue is empty, when it counts as lost."""

_log = structlog.get_logger("compose_app.scheduler")

ACTIVE = Gauge("birthday_scheduler_active", "Whether this scheduler is the one that acts.")
PLANNED = Counter("birthday_messages_planned_total", "Messages planned ahead.")
ENQUEUED = Counter("birthday_messages_enqueued_total", "Messages put into the queue.")
LOST = Counter(
    "birthday_messages_lost_total", "Messages the broker had lost, and that were planned anew."
)
OVERDUE = Gauge(
    "birthday_messages_overdue_seconds",
    "Since when the oldest message is due that is neither sent nor dead; 0 without one.",
)
DEAD = Gauge("birthday_messages_dead", "Messages that could not be sent.")


class Scheduler:
    """Work of a loop."""

    outages = (psycopg.Error, *broker.OUTAGES)

    def __init__(
        self,
        store: MessageStore,
        queue: Broker,
        settings: SchedulerSettings,
        clock: Clock = utc_now,
    ) -> None:
        self._store = store
        self._queue = queue
        self._interval = settings.interval_seconds
        self._ahead = datetime.timedelta(hours=settings.ahead_hours)
        self._catch_up = datetime.timedelta(days=settings.catch_up_days)
        self._clock = clock
        self._plan_due = self._lost_due = time.monotonic()

    def step(self) -> float:
        """Plan, enqueue and publish a portion, and see to the dead and the lost."""
        if not self._store.acts():
            ACTIVE.set(0)
            # Who acts says how things stand.
            self._show(Figures(0, 0))
            return STANDBY
        now = self._clock()
        figures = self._store.figures(now)
        ACTIVE.set(1)
        self._show(figures)
        complete = self._plan(now)
        enqueued = self._store.enqueue(now, AT_ONCE)
        ENQUEUED.inc(enqueued)
        self._publish()
        self._bury()
        self._find_lost(now)
        return self._interval if complete and enqueued < AT_ONCE else 0

    @staticmethod
    def _show(figures: Figures) -> None:
        OVERDUE.set(figures.overdue)
        DEAD.set(figures.dead)

    def _plan(self, now: datetime.datetime) -> bool:
        if time.monotonic() < self._plan_due:
            return True
        planned, complete = self._store.plan(now, now + self._ahead, now - self._catch_up)
        PLANNED.inc(planned)
        if complete:
            self._plan_due = time.monotonic() + PLAN_INTERVAL
        return complete

    def _publish(self) -> None:
        """What the broker has got and the outbox still has is published once more, and no harm."""
        self._queue.breathe()
        ids = self._store.outbox(AT_ONCE)
        if ids:
            self._queue.publish(ids)
            self._store.published(ids)

    def _bury(self) -> None:
        """See to what has come to the queue of the dead, a portion of it.

        What a worker rejected is dead. What was delivered too often is not: its attempts are
        counted elsewhere, and workers that find no database give it back as often as they look.
        """
        for _ in range(AT_ONCE):
            delivery = self._queue.take_dead()
            if delivery is None:
                return
            if delivery.message_id is None:
                _log.error("what was in the queue is no message")
            elif delivery.reason == "delivery_limit":
                self._store.again(delivery.message_id, self._clock())
            elif self._store.dead(delivery.message_id, f"given up: {delivery.reason}"):
                _log.error("message is dead", message_id=delivery.message_id)
            self._queue.done(delivery)

    def _find_lost(self, now: datetime.datetime) -> None:
        if time.monotonic() < self._lost_due:
            return
        if self._queue.waiting() == 0 and (lost := self._store.lost(now, now - LOST_AFTER)):
            LOST.inc(lost)
            _log.warning("messages were lost and are planned anew", messages=lost)
        self._lost_due = time.monotonic() + LOST_INTERVAL

    def lost(self) -> None:
        """Connect anew; another scheduler may act meanwhile.

        The figures stay: nothing says that what was overdue or dead no longer is.
        """
        ACTIVE.set(0)
        self._store.close()
        self._queue.close()

    def leave(self) -> None:
        """Disconnect."""
        self.lost()


def main(settings: SchedulerSettings) -> int:
    """Schedule until SIGTERM or SIGINT.

    Returns:
        0.
    """
    store = MessageStore(
        settings.database_url,
        settings.database_password.get_secret_value(),
        "compose-app scheduler",
    )
    queue = Broker(settings.amqp_url, settings.amqp_password.get_secret_value(), settings.queue)
    return loop.main(Scheduler(store, queue, settings), "scheduler", settings)
