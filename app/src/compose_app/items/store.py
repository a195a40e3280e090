"""Items in PostgreSQL."""

from __future__ import annotations

from typing import Any

import psycopg

from compose_app.db import Database

Row = dict[str, Any]
"""id, name, description, price_cents, quantity, created_at."""


class NameTaken(Exception):
    """Another item has this name."""


class ItemStore:
    """Reads and writes the table `items`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, after: int, limit: int) -> list[Row]:
        """Up to `limit` items whose id is greater than `after`, in order of their ids."""
        return self._database.query(
            "SELECT id, name, description, price_cents, quantity, created_at FROM items"
            " WHERE id > %(after)s ORDER BY id LIMIT %(limit)s",
            {"after": after, "limit": limit},
        )

    def get(self, item_id: int) -> Row | None:
        """One item, or None."""
        rows = self._database.query(
            "SELECT id, name, description, price_cents, quantity, created_at FROM items"
            " WHERE id = %(id)s",
            {"id": item_id},
        )
        return rows[0] if rows else None

    def create(self, name: str, description: str, price_cents: int, quantity: int) -> Row:
        """Insert an item and return it.

        Raises:
            NameTaken: another item has this name.
        """
        try:
            return self._database.query(
                "INSERT INTO items (name, description, price_cents, quantity)"
                " VALUES (%(name)s, %(description)s, %(price_cents)s, %(quantity)s)"
                " RETURNING id, name, description, price_cents, quantity, created_at",
                {
                    "name": name,
                    "description": description,
                    "price_cents": price_cents,
                    "quantity": quantity,
                },
            )[0]
        except psycopg.errors.UniqueViolation as error:
            raise NameTaken(name) from error

    def delete(self, item_id: int) -> bool:
        """Delete an item; False if there was none."""
        return bool(
            self._database.query(
                "DELETE FROM items WHERE id = %(id)s RETURNING id", {"id": item_id}
            )
        )
