"""Birthday messages in PostgreSQL, from the plan to the last attempt.

A message is `planned` until it is due, then `queued`: in the outbox, and from there in the queue of
the broker, which holds its id alone. It ends as `sent` or `dead`; one that is to be tried again is
`planned` once more.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import LiteralString

from psycopg.rows import class_row

from compose_app.birthdays.celebration import between, days
from compose_app.birthdays.store import PLAN_LOCK
from compose_app.db import ProcessConnection

PORTION = datetime.timedelta(days=1)
"""Time planned in one transaction: whoever changes a user waits for its end."""
_ACTIVE_LOCK = 0x62697274
"""Key of the advisory lock of the one scheduler that acts."""

# Once an hour, and so without an index, which could only be made while users wait.
_CELEBRATING = """
SELECT id, birthday, time_zone, celebrated_from FROM users
WHERE (extract(month FROM birthday) * 100 + extract(day FROM birthday))::int = ANY(%(days)s)
"""
# A user who is deleted meanwhile gets none.
_PLAN = """
INSERT INTO birthday_messages (user_id, year, due_at, next_at)
SELECT user_id, year, due_at, due_at
FROM unnest(%(users)s::bigint[], %(years)s::smallint[], %(moments)s::timestamptz[])
    AS planned (user_id, year, due_at)
JOIN users ON users.id = user_id
FOR KEY SHARE OF users
ON CONFLICT (user_id, year) DO NOTHING
"""
_ENQUEUE = """
WITH due AS (
    SELECT id FROM birthday_messages WHERE state = 'planned' AND next_at <= %(now)s
    ORDER BY next_at LIMIT %(limit)s FOR UPDATE
), queued AS (
    UPDATE birthday_messages SET state = 'queued', queued_at = %(now)s
    FROM due WHERE birthday_messages.id = due.id RETURNING birthday_messages.id
)
INSERT INTO birthday_outbox (message_id) SELECT id FROM queued ON CONFLICT DO NOTHING
"""
_CLAIM = """
UPDATE birthday_messages
SET claimed_until = %(until)s, attempts = attempts + 1
FROM users
WHERE birthday_messages.id = ANY(%(ids)s) AND users.id = user_id AND state = 'queued'
RETURNING birthday_messages.id, user_id, year, due_at, attempts, first_name, last_name, email
"""
# In the hand of another, who may have died: it is looked at again when that hand must be empty.
_POSTPONE = """
UPDATE birthday_messages SET state = 'planned', next_at = least(claimed_until, %(until)s)
WHERE id = ANY(%(ids)s) AND state = 'queued' AND claimed_until > %(now)s
"""
_SENT = """
UPDATE birthday_messages
SET state = 'sent', sent_at = %(now)s, claimed_until = NULL, error = NULL WHERE id = %(id)s
"""
# Of the attempt that is meant: another may have followed, where this one took too long.
_RETRY = """
UPDATE birthday_messages
SET state = 'planned', next_at = %(next_at)s, attempts = %(counted)s, claimed_until = NULL,
    error = %(error)s
WHERE id = %(id)s AND attempts = %(attempt)s AND state IN ('planned', 'queued')
"""
_REFUSED = """
UPDATE birthday_messages SET claimed_until = NULL, error = %(error)s
WHERE id = %(id)s AND attempts = %(attempt)s AND state IN ('planned', 'queued')
"""
_DEAD = """
UPDATE birthday_messages
SET state = 'dead', claimed_until = NULL, error = coalesce(error, %(reason)s)
WHERE id = %(id)s AND state = 'queued'
"""
_AGAIN = """
UPDATE birthday_messages SET state = 'planned', next_at = %(now)s
WHERE id = %(id)s AND state = 'queued'
"""
_LOST = """
UPDATE birthday_messages SET state = 'planned', next_at = %(now)s
WHERE state = 'queued' AND queued_at < %(before)s
    AND id NOT IN (SELECT message_id FROM birthday_outbox)
"""
REPLAY: LiteralString = """
UPDATE birthday_messages SET state = 'planned', attempts = 0, next_at = %(now)s
WHERE state = 'dead' AND (%(id)s::bigint IS NULL OR id = %(id)s)
"""
_FIGURES = """
SELECT
    coalesce((
        SELECT extract(epoch FROM %(now)s - due_at) FROM birthday_messages
        WHERE state IN ('planned', 'queued') ORDER BY due_at LIMIT 1
    ), 0)::float,
    (SELECT count(*) FROM birthday_messages WHERE state = 'dead')
"""


@dataclasses.dataclass(frozen=True)
class Message:
    """One in hand."""

    id: int
    user_id: int
    year: int
    due_at: datetime.datetime
    attempts: int
    """How many there have been, this one included."""
    first_name: str
    last_name: str
    email: str


@dataclasses.dataclass(frozen=True)
class Retry:
    """A message that was not sent and will be tried again."""

    message: Message
    next_at: datetime.datetime
    error: str
    counts: bool
    """Whether this was an attempt."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """How things stand."""

    overdue: float
    """Seconds since when the oldest message is due that is neither sent nor dead; 0 without."""
    dead: int


class MessageStore:
    """The messages, for those who plan and send them. Raises psycopg.Error throughout."""

    def __init__(self, url: str, password: str, name: str) -> None:
        """Take what `db.ProcessConnection` takes."""
        self._connection = ProcessConnection(url, password, name)
        self._acts = False

    def close(self) -> None:
        """Disconnect, and act no more; the next call connects anew."""
        self._acts = False
        self._connection.close()

    def acts(self) -> bool:
        """Become the one that plans and enqueues, or remain it; False while another one is.

        Whoever acts does so until its connection ends.
        """
        connection = self._connection.open()
        if not self._acts:
            row = connection.execute(
                "SELECT pg_try_advisory_lock(%(key)s)", {"key": _ACTIVE_LOCK}
            ).fetchone()
            self._acts = bool(row and row[0])
        return self._acts

    def plan(
        self, now: datetime.datetime, until: datetime.datetime, not_before: datetime.datetime
    ) -> tuple[int, bool]:
        """Plan the messages of a portion of time.

        Args:
            now: the time.
            until: up to when messages are to be planned.
            not_before: what was due before is not sent any more.

        Returns:
            How many messages are new, and whether all up to `until` are planned.
        """
        connection = self._connection.open()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%(key)s)", {"key": PLAN_LOCK})
            row = cursor.execute("SELECT planned_until FROM birthday_plan").fetchone()
            before = row[0] if row else now
            # From now on, or from where the last plan ended if that is behind: what is planned
            # stays as it is, and a clock that had run ahead leaves no gap.
            after = max(min(before, now), not_before)
            end = min(until, after + PORTION) if before < now else until
            users, years, moments = [], [], []
            for user_id, birthday, zone, since in cursor.execute(
                _CELEBRATING, {"days": days(after, end)}
            ).fetchall():
                for coming in between(birthday, zone, max(after, since), end):
                    users.append(user_id)
                    years.append(coming.day.year)
                    moments.append(coming.due_at)
            cursor.execute(_PLAN, {"users": users, "years": years, "moments": moments})
            planned = cursor.rowcount
            cursor.execute(
                "DELETE FROM birthday_messages"
                " WHERE state = 'planned' AND queued_at IS NULL AND due_at < %(before)s",
                {"before": not_before},
            )
            cursor.execute(
                "INSERT INTO birthday_plan (planned_until) VALUES (%(end)s)"
                " ON CONFLICT (one) DO UPDATE SET planned_until = %(end)s",
                {"end": end},
            )
        return planned, end == until

    def enqueue(self, now: datetime.datetime, limit: int) -> int:
        """Put what is due into the outbox, and return how many that were."""
        parameters = {"now": now, "limit": limit}
        return self._connection.open().execute(_ENQUEUE, parameters).rowcount

    def outbox(self, limit: int) -> list[int]:
        """Ids of messages that the broker has not got."""
        rows = self._connection.open().execute(
            "SELECT message_id FROM birthday_outbox ORDER BY message_id LIMIT %(limit)s",
            {"limit": limit},
        )
        return [row[0] for row in rows]

    def published(self, ids: Sequence[int]) -> None:
        """Take messages that the broker has got out of the outbox."""
        self._connection.open().execute(
            "DELETE FROM birthday_outbox WHERE message_id = ANY(%(ids)s)", {"ids": list(ids)}
        )

    def check(self) -> None:
        """Ask whether the database answers."""
        self._connection.open().execute("SELECT")

    def claim(self, ids: Sequence[int], now: datetime.datetime, seconds: float) -> list[Message]:
        """Take messages in hand for a time; those that are settled or in another's are left out."""
        until = now + datetime.timedelta(seconds=seconds)
        connection = self._connection.open()
        parameters = {"ids": list(ids), "now": now, "until": until}
        with connection.transaction(), connection.cursor(row_factory=class_row(Message)) as cursor:
            # First: what it leaves queued is in nobody's hand.
            cursor.execute(_POSTPONE, parameters)
            return cursor.execute(_CLAIM, parameters).fetchall()

    def record(
        self,
        now: datetime.datetime,
        sent: Sequence[Message],
        retries: Sequence[Retry],
        refused: Sequence[tuple[Message, str]],
    ) -> None:
        """Note what became of messages in hand; the refused ones with the reason."""
        connection = self._connection.open()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(_SENT, [{"id": message.id, "now": now} for message in sent])
            cursor.executemany(
                _RETRY,
                [
                    {
                        "id": retry.message.id,
                        "attempt": retry.message.attempts,
                        "counted": retry.message.attempts - (not retry.counts),
                        "next_at": retry.next_at,
                        "error": retry.error,
                    }
                    for retry in retries
                ],
            )
            cursor.executemany(
                _REFUSED,
                [
                    {"id": message.id, "attempt": message.attempts, "error": error}
                    for message, error in refused
                ],
            )

    def dead(self, message_id: int, reason: str) -> bool:
        """Give a message up, for this reason if none is known; False if it is settled."""
        parameters = {"id": message_id, "reason": reason}
        return bool(self._connection.open().execute(_DEAD, parameters).rowcount)

    def again(self, message_id: int, now: datetime.datetime) -> bool:
        """Plan a message anew that the queue has given up; False if it is settled."""
        parameters = {"id": message_id, "now": now}
        return bool(self._connection.open().execute(_AGAIN, parameters).rowcount)

    def lost(self, now: datetime.datetime, before: datetime.datetime) -> int:
        """Plan anew what was queued before a moment and is not in the queue; return how many."""
        parameters = {"now": now, "before": before}
        return self._connection.open().execute(_LOST, parameters).rowcount

    def replay(self, now: datetime.datetime, message_id: int | None) -> int:
        """Plan a dead message anew, or all of them; return how many."""
        parameters = {"now": now, "id": message_id}
        return self._connection.open().execute(REPLAY, parameters).rowcount

    def figures(self, now: datetime.datetime) -> Figures:
        """How things stand."""
        row = self._connection.open().execute(_FIGURES, {"now": now}).fetchone()
        assert row  # noqa: S101 - a SELECT without FROM has one
        return Figures(max(0.0, row[0]), row[1])
