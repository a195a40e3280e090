"""Usage events."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE usage_events (
            time timestamptz NOT NULL,
            tenant text NOT NULL,
            metric text NOT NULL,
            quantity numeric(16, 6) NOT NULL CHECK (quantity >= 0),
            event_id text NOT NULL
        )
    """)
    op.execute("""
        SELECT create_hypertable(
            'usage_events', 'time', chunk_time_interval => interval '7 days',
            create_default_indexes => false
        )
    """)
    op.execute("CREATE INDEX usage_events_series ON usage_events (tenant, metric, time)")
    # A hypertable's unique index must hold the time, and an event sent again with another time
    # would slip through: who has been counted is kept apart. Digests of 16 bytes, because ids have
    # any length and this index is what ingestion waits for.
    op.execute("""
        CREATE TABLE usage_event_ids (
            id uuid PRIMARY KEY,
            content uuid NOT NULL,
            time timestamptz NOT NULL
        )
    """)
    op.execute("""
        CREATE TABLE usage_rejected (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            entry text NOT NULL,
            place integer NOT NULL,
            reason text NOT NULL,
            payload bytea NOT NULL,
            rejected_at timestamptz NOT NULL DEFAULT now(),
            UNIQUE (entry, place)
        )
    """)


def downgrade() -> None:
    op.execute("DROP TABLE usage_events")  # a hypertable goes alone
    op.execute("DROP TABLE usage_event_ids, usage_rejected")
