"""What trials of users' own code wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "logs",
        sa.Column("trial_id", sa.BigInteger, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name="pk_logs"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_logs_trial_id", ondelete="CASCADE"),
    )
