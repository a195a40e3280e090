"""Users in PostgreSQL."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypedDict

import psycopg

from compose_app.birthdays.celebration import Celebration, between, celebration, moved
from compose_app.db import Database, Query

Row = dict[str, Any]
"""id, first_name, last_name, birthday, time_zone, email, created_at."""


PLAN_LOCK = 0x706C616E
"""Key of the advisory lock of who plans messages ahead; who changes users holds it shared."""

APART = datetime.timedelta(hours=48)
"""More than the same time of one day lies apart in the first time zone and the last."""

Clock = Callable[[], datetime.datetime]
"""Tells the time, with a time zone."""


def utc_now() -> datetime.datetime:
    """The time."""
    return datetime.datetime.now(datetime.UTC)


class UserValues(TypedDict):
    """All that is known of a user."""

    first_name: str
    last_name: str
    birthday: datetime.date
    time_zone: str
    email: str


class EmailTaken(Exception):
    """Another user has this address."""


class UserStore:
    """Reads and writes the table `users`, and plans the messages of those who change."""

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    def get(self, user_id: int) -> Row | None:
        """One user, or None."""
        rows = self._database.query(
            "SELECT id, first_name, last_name, birthday, time_zone, email, created_at FROM users"
            " WHERE id = %(id)s",
            {"id": user_id},
        )
        return rows[0] if rows else None

    def create(self, values: UserValues) -> Row:
        """Insert a user and return it.

        Raises:
            EmailTaken: another user has this address.
        """
        now = self._clock()
        try:
            with self._database.transaction() as query:
                planned_until = _planned_until(query, now)
                row = query(
                    "INSERT INTO users"
                    " (first_name, last_name, birthday, time_zone, email, celebrated_from)"
                    " VALUES (%(first_name)s, %(last_name)s, %(birthday)s, %(time_zone)s,"
                    " %(email)s, %(now)s)"
                    " RETURNING id, first_name, last_name, birthday, time_zone, email, created_at",
                    {**values, "now": now},
                )[0]
                for coming in between(values["birthday"], values["time_zone"], now, planned_until):
                    _plan(query, row["id"], coming)
                return row
        except psycopg.errors.UniqueViolation as error:
            raise EmailTaken from error

    def replace(self, user_id: int, values: UserValues) -> Row | None:
        """Give a user all these values and return it; None if there is none.

        Raises:
            EmailTaken: another user has this address.
        """
        now = self._clock()
        try:
            with self._database.transaction() as query:
                planned_until = _planned_until(query, now)
                found = query(
                    "SELECT birthday, time_zone, celebrated_from FROM users WHERE id = %(id)s"
                    " FOR NO KEY UPDATE",
                    {"id": user_id},
                )
                if not found:
                    return None
                before = found[0]
                same = (before["birthday"], before["time_zone"]) == (
                    values["birthday"],
                    values["time_zone"],
                )
                row = query(
                    "UPDATE users SET first_name = %(first_name)s, last_name = %(last_name)s,"
                    " birthday = %(birthday)s, time_zone = %(time_zone)s, email = %(email)s,"
                    " celebrated_from = %(since)s"
                    " WHERE id = %(id)s"
                    " RETURNING id, first_name, last_name, birthday, time_zone, email, created_at",
                    {"id": user_id, "since": before["celebrated_from"] if same else now, **values},
                )[0]
                if not same:
                    _plan_anew(query, before, row, planned_until, now)
                return row
        except psycopg.errors.UniqueViolation as error:
            raise EmailTaken from error

    def delete(self, user_id: int) -> bool:
        """Delete a user, and what was planned for it; False if there was none."""
        return bool(
            self._database.query(
                "DELETE FROM users WHERE id = %(id)s RETURNING id", {"id": user_id}
            )
        )


def _planned_until(query: Query, now: datetime.datetime) -> datetime.datetime:
    """Up to when messages are planned; nobody plans on before the transaction has ended."""
    query("SELECT pg_advisory_xact_lock_shared(%(key)s)", {"key": PLAN_LOCK})
    rows = query("SELECT planned_until FROM birthday_plan")
    # Empty where a release is rehearsed on tables without their rows.
    return rows[0]["planned_until"] if rows else now


def _plan(query: Query, user_id: int, coming: Celebration) -> None:
    query(
        "INSERT INTO birthday_messages (user_id, year, due_at, next_at)"
        " VALUES (%(user_id)s, %(year)s, %(due_at)s, %(due_at)s)"
        " ON CONFLICT (user_id, year) DO NOTHING",
        {"user_id": user_id, "year": coming.day.year, "due_at": coming.due_at},
    )


def _plan_anew(
    query: Query, before: Row, user: Row, planned_until: datetime.datetime, now: datetime.datetime
) -> None:
    """Have what is planned follow a change; what has been queued stays as it is."""
    # What nobody has planned yet is owed by the values before: what has come due, and what the
    # change may make due, by less than zones lie apart. What is owed no more goes at once.
    since = max(before["celebrated_from"], planned_until)
    for owed in between(before["birthday"], before["time_zone"], since, now + APART):
        _plan(query, user["id"], owed)
    for message in query(
        "SELECT id, year FROM birthday_messages"
        " WHERE user_id = %(id)s AND state = 'planned' AND queued_at IS NULL FOR UPDATE",
        {"id": user["id"]},
    ):
        planned = celebration(before["birthday"], before["time_zone"], message["year"])
        anew = moved(user["birthday"], user["time_zone"], planned, now)
        if anew is not None and anew.due_at <= max(planned_until, now):
            query(
                "UPDATE birthday_messages SET due_at = %(due_at)s, next_at = %(due_at)s"
                " WHERE id = %(id)s",
                {"id": message["id"], "due_at": anew.due_at},
            )
        else:
            query("DELETE FROM birthday_messages WHERE id = %(id)s", {"id": message["id"]})
    for coming in between(user["birthday"], user["time_zone"], now, planned_until):
        _plan(query, user["id"], coming)
