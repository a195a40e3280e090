"""Coupons and claims in PostgreSQL.

Whoever claims holds the coupon's row from its update to the end of the statement, and no longer:
all the work of a claim is one statement, so that no lock waits for a client.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from compose_app.db import Database
from compose_app.dependencies import Unavailable

Row = dict[str, Any]
ATTEMPTS = 5
"""How often a batch is tried when others claim for the same users meanwhile."""

# `|| ''` keeps the planner from the index by coupon: of a coupon that is new and hot its statistics
# know nothing, and it would look through all the claims of it for each user.
_CLAIM = """
WITH taken AS (
    UPDATE coupons SET remaining_amount = remaining_amount - 1
    WHERE name = %(coupon)s AND remaining_amount > 0
      AND NOT EXISTS (
          SELECT FROM claims WHERE user_id = %(user)s AND coupon_name || '' = %(coupon)s
      )
    RETURNING name
), granted AS (
    INSERT INTO claims (user_id, coupon_name)
    SELECT %(user)s, name FROM taken
    RETURNING id, user_id, coupon_name, created_at
)
SELECT granted.*, EXISTS (
    SELECT FROM claims WHERE user_id = %(user)s AND coupon_name || '' = %(coupon)s
) AS already
FROM coupons LEFT JOIN granted ON true
WHERE name = %(coupon)s
"""

# A value instead of NOT EXISTS is asked for each user by the index; NOT EXISTS may become a join
# that reads all claims, by a plan made while there were few, which a connection keeps.
_CLAIM_MANY = """
WITH stock AS MATERIALIZED (
    SELECT remaining_amount FROM coupons
    WHERE name = %(coupon)s AND remaining_amount > 0
    FOR UPDATE
), wanted AS (
    SELECT user_id FROM unnest(%(users)s::text[]) WITH ORDINALITY AS given (user_id, place)
    WHERE (
        SELECT id FROM claims
        WHERE claims.user_id = given.user_id AND coupon_name || '' = %(coupon)s
    ) IS NULL
    ORDER BY place
    LIMIT coalesce((SELECT remaining_amount FROM stock), 0)
), taken AS (
    UPDATE coupons SET remaining_amount = remaining_amount - (SELECT count(*) FROM wanted)
    WHERE name = %(coupon)s AND EXISTS (SELECT FROM wanted)
    RETURNING name
)
INSERT INTO claims (user_id, coupon_name)
SELECT user_id, name FROM taken CROSS JOIN wanted
RETURNING user_id
"""


class NameTaken(Exception):
    """Another coupon has this name."""


class NoSuchCoupon(Exception):
    """There is no coupon of this name."""


class AlreadyClaimed(Exception):
    """The user has a piece of it."""


class NoneLeft(Exception):
    """There are no more pieces."""


class CouponStore:
    """Reads and writes the tables `coupons` and `claims`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, amount: int) -> Row:
        """Insert a coupon; return name, amount, remaining_amount, created_at.

        Raises:
            NameTaken: another coupon has this name.
        """
        try:
            return self._database.query(
                "INSERT INTO coupons (name, amount, remaining_amount)"
                " VALUES (%(name)s, %(amount)s, %(amount)s)"
                " RETURNING name, amount, remaining_amount, created_at",
                {"name": name, "amount": amount},
            )[0]
        except psycopg.errors.UniqueViolation as error:
            raise NameTaken(name) from error

    def get(self, name: str) -> Row | None:
        """name, amount, remaining_amount, created_at of a coupon, or None."""
        rows = self._database.query(
            "SELECT name, amount, remaining_amount, created_at FROM coupons WHERE name = %(name)s",
            {"name": name},
        )
        return rows[0] if rows else None

    def page(self, after: str, limit: int) -> list[Row]:
        """Up to `limit` coupons whose name comes after `after`, in order of their names."""
        return self._database.query(
            "SELECT name, amount, remaining_amount, created_at FROM coupons"
            " WHERE name > %(after)s ORDER BY name LIMIT %(limit)s",
            {"after": after, "limit": limit},
        )

    def claims(self, name: str, after: int, limit: int) -> list[Row]:
        """Up to `limit` claims of a coupon whose id is greater: id, user_id, created_at."""
        return self._database.query(
            "SELECT id, user_id, created_at FROM claims"
            " WHERE coupon_name = %(name)s AND id > %(after)s ORDER BY id LIMIT %(limit)s",
            {"name": name, "after": after, "limit": limit},
        )

    def claim(self, user: str, coupon: str) -> Row:
        """Give a user a piece of a coupon; return the claim: id, user_id, coupon_name, created_at.

        One statement. Its update takes no row, and so no lock, where the coupon is sold out or the
        user has claimed before. Of a user's claims at once each may take a piece, but all the
        inserts of them but one violate the constraint, which undoes their updates, too.

        Raises:
            NoSuchCoupon: there is none of this name.
            AlreadyClaimed: the user has one.
            NoneLeft: there are none left.
        """
        try:
            rows = self._database.query(_CLAIM, {"user": user, "coupon": coupon})
        except psycopg.errors.UniqueViolation as error:
            raise AlreadyClaimed from error
        if not rows:
            raise NoSuchCoupon
        row = rows[0]
        if row.pop("already"):
            raise AlreadyClaimed
        if row["id"] is None:
            raise NoneLeft
        return row

    def claim_many(self, users: Sequence[str], coupon: str) -> tuple[set[str], set[str]]:
        """Give pieces of a coupon to users, in their order, in one transaction.

        Returns:
            Those who got one now, and those who had one before. For the others none was left.

        Raises:
            NoSuchCoupon: there is none of this name.
            Unavailable: others went on claiming for the same users; nothing was claimed.
        """
        parameters = {"users": list(users), "coupon": coupon}
        claimed: set[str] | None = None
        for _ in range(ATTEMPTS):
            try:
                rows = self._database.query(_CLAIM_MANY, parameters)
            except psycopg.errors.UniqueViolation:
                # One of them has claimed since the statement began, and is known now.
                continue
            claimed = {row["user_id"] for row in rows}
            break
        if claimed is None:
            raise Unavailable("coupon")
        if len(claimed) == len(parameters["users"]):
            return claimed, set()
        if self.get(coupon) is None:
            raise NoSuchCoupon
        found = self._database.query(
            "SELECT user_id FROM claims"
            " WHERE coupon_name || '' = %(coupon)s AND user_id = ANY(%(users)s::text[])",
            parameters,
        )
        return claimed, {row["user_id"] for row in found} - claimed
