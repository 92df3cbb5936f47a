"""How far each sink has come with each job.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sink_cursors",
        sa.Column("sink", sa.String(length=63), nullable=False),
        sa.Column("job", sa.String(length=63), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("is_complete", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_sink_cursors_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sink", "job", name=op.f("pk_sink_cursors")),
    )
    op.create_index("ix_sink_cursors_sink_is_complete", "sink_cursors", ["sink", "is_complete"])


def downgrade() -> None:
    op.drop_index("ix_sink_cursors_sink_is_complete", "sink_cursors")
    op.drop_table("sink_cursors")
