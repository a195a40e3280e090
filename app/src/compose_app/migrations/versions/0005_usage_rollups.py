"""Roll-ups of usage events by minute, hour and day."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # What has been counted and is not in the roll-ups yet, added up by minute. Written with the
    # events by a trigger: the version before, which still counts during a release, knows nothing
    # of it.
    op.execute("""
        CREATE TABLE usage_changes (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            tenant text NOT NULL,
            metric text NOT NULL,
            minute timestamptz NOT NULL,
            quantity numeric NOT NULL,
            events bigint NOT NULL,
            changed_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    op.execute("""
        CREATE FUNCTION note_usage_changes() RETURNS trigger LANGUAGE plpgsql
        SET search_path = public, pg_temp AS $$
        BEGIN
            INSERT INTO usage_changes (tenant, metric, minute, quantity, events)
            SELECT tenant, metric, date_trunc('minute', time), sum(quantity), count(*)
            FROM counted GROUP BY tenant, metric, date_trunc('minute', time);
            RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER note_usage_changes AFTER INSERT ON usage_events
        REFERENCING NEW TABLE AS counted
        FOR EACH STATEMENT EXECUTE FUNCTION note_usage_changes()
    """)
    op.execute("""
        INSERT INTO usage_changes (tenant, metric, minute, quantity, events)
        SELECT tenant, metric, date_trunc('minute', time), sum(quantity), count(*)
        FROM usage_events GROUP BY tenant, metric, date_trunc('minute', time)
    """)
    # Buckets are those of UTC. An hour has 60 minutes: it is kept longer, in larger chunks.
    for name, chunk in (
        ("usage_minutes", "7 days"),
        ("usage_hours", "90 days"),
        ("usage_days", ""),
    ):
        op.execute(f"""
            CREATE TABLE {name} (
                tenant text NOT NULL,
                metric text NOT NULL,
                bucket timestamptz NOT NULL,
                quantity numeric NOT NULL,
                events bigint NOT NULL,
                PRIMARY KEY (tenant, metric, bucket)
            )
        """)
        if chunk:
            op.execute(f"""
                SELECT create_hypertable(
                    '{name}', 'bucket', chunk_time_interval => interval '{chunk}',
                    create_default_indexes => false
                )
            """)
    # Ids are forgotten when no event as old is accepted any more.
    op.execute("CREATE INDEX usage_event_ids_time ON usage_event_ids (time)")
    # Only the owner of a hypertable may drop chunks: the application, of these alone.
    op.execute("""
        CREATE FUNCTION drop_usage_chunks(hypertable text, before timestamptz) RETURNS bigint
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
        BEGIN
            IF hypertable NOT IN ('usage_events', 'usage_minutes', 'usage_hours') THEN
                RAISE EXCEPTION '% is not one of usage', hypertable;
            END IF;
            RETURN (SELECT count(*) FROM drop_chunks(hypertable::regclass, before));
        END $$
    """)
    op.execute("REVOKE EXECUTE ON FUNCTION drop_usage_chunks FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION drop_usage_chunks TO app")


def downgrade() -> None:
    op.execute("DROP FUNCTION drop_usage_chunks")
    op.execute("DROP INDEX usage_event_ids_time")
    op.execute("DROP TABLE usage_minutes")  # a hypertable goes alone
    op.execute("DROP TABLE usage_hours")
    op.execute("DROP TABLE usage_days, usage_changes")
    op.execute("DROP TRIGGER note_usage_changes ON usage_events")
    op.execute("DROP FUNCTION note_usage_changes")
