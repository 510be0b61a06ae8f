"""What trials had at the rungs of early stopping, and who went on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "rungs",
        sa.Column("stage_id", sa.BigInteger, nullable=False),
        sa.Column("bracket", sa.BigInteger, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("trial", sa.BigInteger, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("went_on", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("stage_id", "bracket", "step", "trial", name="pk_rungs"),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name="fk_rungs_stage_id", ondelete="CASCADE"),
        sa.UniqueConstraint("stage_id", "seq", name="uq_rungs_stage_id_seq"),
        sqlite_with_rowid=False,
    )
