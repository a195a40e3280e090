"""Users in PostgreSQL."""

from __future__ import annotations

import datetime
from typing import Any, TypedDict

import psycopg

from compose_app.db import Database

Row = dict[str, Any]
"""id, first_name, last_name, birthday, time_zone, email, created_at."""


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
    """Reads and writes the table `users`."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        try:
            return self._database.query(
                "INSERT INTO users (first_name, last_name, birthday, time_zone, email)"
                " VALUES (%(first_name)s, %(last_name)s, %(birthday)s, %(time_zone)s, %(email)s)"
                " RETURNING id, first_name, last_name, birthday, time_zone, email, created_at",
                dict(values),
            )[0]
        except psycopg.errors.UniqueViolation as error:
            raise EmailTaken from error

    def replace(self, user_id: int, values: UserValues) -> Row | None:
        """Give a user all these values and return it; None if there is none.

        Raises:
            EmailTaken: another user has this address.
        """
        try:
            rows = self._database.query(
                "UPDATE users SET first_name = %(first_name)s, last_name = %(last_name)s,"
                " birthday = %(birthday)s, time_zone = %(time_zone)s, email = %(email)s"
                " WHERE id = %(id)s"
                " RETURNING id, first_name, last_name, birthday, time_zone, email, created_at",
                {"id": user_id, **values},
            )
        except psycopg.errors.UniqueViolation as error:
            raise EmailTaken from error
        return rows[0] if rows else None

    def delete(self, user_id: int) -> bool:
        """Delete a user; False if there was none."""
        return bool(
            self._database.query(
                "DELETE FROM users WHERE id = %(id)s RETURNING id", {"id": user_id}
            )
        )
