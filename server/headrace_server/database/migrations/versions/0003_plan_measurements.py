"""What was measured of the ways to run a version.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from headrace_server.database.tables import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "plan_measurements",
        sa.Column("model", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("environment", sa.String(length=32), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("measured_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.id"], name=op.f("fk_plan_measurements_model"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model", "version", "environment", name=op.f("pk_plan_measurements")),
    )


def downgrade() -> None:
    op.drop_table("plan_measurements")
