"""Demonstration data, for inventories that ask for it."""

from __future__ import annotations

from sqlalchemy import Connection, text

ITEMS = [
    {"name": "Blue kettle", "description": "1.7 litres, enamel.", "price": 3490, "quantity": 12},
    {"name": "Oak table", "description": "Seats six.", "price": 48900, "quantity": 3},
    {
        "name": "Wool blanket",
        "description": "Undyed, 130 by 200 cm.",
        "price": 7900,
        "quantity": 25,
    },
    {"name": "Brass lamp", "description": "With a linen shade.", "price": 12500, "quantity": 7},
    {"name": "Garden shears", "description": "", "price": 2950, "quantity": 40},
]
"""Prices in cents."""
COUPONS = [{"name": "WELCOME", "amount": 100}]


def seed(connection: Connection) -> None:
    """Add those of ITEMS and COUPONS whose names are not there yet."""
    connection.execute(
        text(
            "INSERT INTO items (name, description, price_cents, quantity)"
            " VALUES (:name, :description, :price, :quantity) ON CONFLICT (name) DO NOTHING"
        ),
        ITEMS,
    )
    connection.execute(
        text(
            "INSERT INTO coupons (name, amount, remaining_amount)"
            " VALUES (:name, :amount, :amount) ON CONFLICT (name) DO NOTHING"
        ),
        COUPONS,
    )
