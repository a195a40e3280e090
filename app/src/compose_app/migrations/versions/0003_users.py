"""Users."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE users (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            first_name text NOT NULL CHECK (char_length(first_name) BETWEEN 1 AND 100),
            last_name text NOT NULL CHECK (char_length(last_name) BETWEEN 1 AND 100),
            birthday date NOT NULL,
            time_zone text NOT NULL,
            email text NOT NULL CHECK (char_length(email) <= 254),
            created_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    # The same address in another case is the same address, to all who run a mail server.
    op.execute("CREATE UNIQUE INDEX users_email_key ON users (lower(email))")


def downgrade() -> None:
    op.execute("DROP TABLE users")
