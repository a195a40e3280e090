"""Items."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE items (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            name text NOT NULL UNIQUE CHECK (char_length(name) BETWEEN 1 AND 200),
            description text NOT NULL CHECK (char_length(description) <= 2000),
            price_cents integer NOT NULL CHECK (price_cents >= 0),
            quantity integer NOT NULL CHECK (quantity >= 0),
            created_at timestamptz NOT NULL DEFAULT now()
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE items")
