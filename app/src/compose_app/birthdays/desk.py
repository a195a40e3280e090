"""Birthday messages as the operator sees them."""

from __future__ import annotations

from psycopg.rows import DictRow

from compose_app.birthdays.messages import REPLAY
from compose_app.birthdays.store import Clock, utc_now
from compose_app.db import Database

_COUNTS = """
SELECT
    count(*) FILTER (WHERE state = 'planned' AND due_at > %(now)s) AS planned,
    count(*) FILTER (WHERE state = 'planned' AND due_at <= %(now)s) AS waiting,
    count(*) FILTER (WHERE state = 'queued') AS queued,
    (SELECT count(*) FROM birthday_messages WHERE state = 'dead') AS dead
FROM birthday_messages WHERE state IN ('planned', 'queued')
"""
_LIST = """
SELECT birthday_messages.id, first_name, last_name, email, time_zone, due_at, attempts, error
FROM birthday_messages JOIN users ON users.id = user_id
"""


class MessageDesk:
    """What is coming, what was given up, and another attempt at that."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    def depths(self) -> dict[str, int]:
        """How many messages there are on the way, in words.

        Raises:
            compose_app.dependencies.Unavailable: the database does not answer.
        """
        counts = self._database.query(_COUNTS, {"now": self._clock()})[0]
        return {
            "Birthday messages planned": counts["planned"],
            "Birthday messages due, or to be tried again": counts["waiting"],
            "Birthday messages in the queue or with a worker": counts["queued"],
            "Birthday messages given up": counts["dead"],
        }

    def coming(self, limit: int) -> list[DictRow]:
        """What is planned, in the order in which it is due.

        Raises:
            compose_app.dependencies.Unavailable: the database does not answer.
        """
        return self._database.query(
            _LIST + "WHERE state = 'planned' ORDER BY next_at LIMIT %(limit)s", {"limit": limit}
        )

    def dead(self, limit: int) -> list[DictRow]:
        """What was given up, with the reason.

        Raises:
            compose_app.dependencies.Unavailable: the database does not answer.
        """
        return self._database.query(
            _LIST + "WHERE state = 'dead' ORDER BY birthday_messages.id LIMIT %(limit)s",
            {"limit": limit},
        )

    def replay(self, message_id: int) -> bool:
        """Have a message that was given up tried once more; False if it is none.

        Raises:
            compose_app.dependencies.Unavailable: the database does not answer.
        """
        return bool(
            self._database.query(REPLAY + "RETURNING id", {"now": self._clock(), "id": message_id})
        )
