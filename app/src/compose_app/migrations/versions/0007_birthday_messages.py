"""Birthday messages, and the outbox that leads them to the queue."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Since when the user's birthday and time zone are what they are: what was due before is not.
    op.execute("""
        ALTER TABLE users ADD COLUMN celebrated_from timestamptz NOT NULL DEFAULT now()
    """)
    # One message a user and year of the user's calendar, whatever happens.
    op.execute("""
        CREATE TABLE birthday_messages (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            user_id bigint NOT NULL REFERENCES users ON DELETE CASCADE,
            year smallint NOT NULL,
            due_at timestamptz NOT NULL,
            state text NOT NULL DEFAULT 'planned'
                CHECK (state IN ('planned', 'queued', 'sent', 'dead')),
            next_at timestamptz NOT NULL,
            queued_at timestamptz,
            claimed_until timestamptz,
            attempts integer NOT NULL DEFAULT 0,
            error text,
            sent_at timestamptz,
            UNIQUE (user_id, year)
        )
    """)
    op.execute("""
        CREATE INDEX birthday_messages_planned ON birthday_messages (next_at)
        WHERE state = 'planned'
    """)
    op.execute("""
        CREATE INDEX birthday_messages_unsent ON birthday_messages (due_at)
        WHERE state IN ('planned', 'queued')
    """)
    op.execute("""
        CREATE INDEX birthday_messages_dead ON birthday_messages (id) WHERE state = 'dead'
    """)
    op.execute("""
        CREATE TABLE birthday_outbox (
            message_id bigint PRIMARY KEY REFERENCES birthday_messages ON DELETE CASCADE
        )
    """)
    # Up to when messages have been planned: one row.
    op.execute("""
        CREATE TABLE birthday_plan (
            one boolean PRIMARY KEY DEFAULT true CHECK (one),
            planned_until timestamptz NOT NULL
        )
    """)
    op.execute("INSERT INTO birthday_plan (planned_until) VALUES (now())")


def downgrade() -> None:
    op.execute("DROP TABLE birthday_plan, birthday_outbox, birthday_messages")
    op.execute("ALTER TABLE users DROP COLUMN celebrated_from")
