"""How a stage came about, what it costs, and what users noted of its borders."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table; count the epochs of stages that are there."""
    op.add_column("stages", sa.Column("origin", sa.Text))
    op.add_column("stages", sa.Column("watched", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("stages", sa.Column("n_epochs", sa.BigInteger, nullable=False, server_default="0"))
    op.execute(
        "UPDATE stages SET n_epochs = (SELECT COALESCE(SUM(step), 0) FROM trials "
        "WHERE trials.stage_id = stages.id AND trials.state NOT IN ('queued', 'running'))"
    )
    op.create_table(
        "acknowledgements",
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("parameter", sa.Text, nullable=False),
        sa.Column("side", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("study_id", "stage", "parameter", "side", name="pk_acknowledgements"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_acknowledgements_study_id", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
