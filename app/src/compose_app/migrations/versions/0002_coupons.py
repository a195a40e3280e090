"""Coupons and claims."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The types are given from outside.
    op.execute("""
        CREATE TABLE coupons (
            -- squawk-ignore prefer-text-field
            name varchar(255) PRIMARY KEY,
            amount integer NOT NULL CHECK (amount > 0),
            remaining_amount integer NOT NULL CHECK (remaining_amount >= 0),
            created_at timestamptz DEFAULT now()
        )
    """)
    op.execute("""
        CREATE TABLE claims (
            -- squawk-ignore prefer-identity, prefer-bigint-over-int
            id serial PRIMARY KEY,
            -- squawk-ignore prefer-text-field
            user_id varchar(255) NOT NULL,
            -- squawk-ignore prefer-text-field
            coupon_name varchar(255) REFERENCES coupons (name),
            created_at timestamptz DEFAULT now(),
            UNIQUE (user_id, coupon_name)
        )
    """)
    op.execute("CREATE INDEX claims_coupon_name_idx ON claims (coupon_name)")


def downgrade() -> None:
    op.execute("DROP TABLE claims, coupons")
