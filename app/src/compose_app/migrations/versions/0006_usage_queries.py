"""What the query service may read."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        GRANT SELECT ON usage_minutes, usage_hours, usage_days, usage_changes TO app_query
    """)


def downgrade() -> None:
    op.execute("""
        REVOKE SELECT ON usage_minutes, usage_hours, usage_days, usage_changes FROM app_query
    """)
