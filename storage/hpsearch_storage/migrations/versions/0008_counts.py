"""What spares work: counters of rungs and of epochs not trained, indexes of leases that hold and of workers by time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the index; count the rungs that are there."""
    op.add_column("stages", sa.Column("last_rung", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE stages SET last_rung = (SELECT COALESCE(MAX(seq), 0) FROM rungs WHERE stage_id = stages.id)")
    op.add_column("trials", sa.Column("behind", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("ix_workers_last_seen", "workers", ["last_seen"])
    op.drop_index("ix_attempts_state_expires_at", "attempts")
    op.drop_index("ix_attempts_worker_state", "attempts")
    held = sa.text("state = 'running'")
    op.create_index("ix_attempts_running", "attempts", ["worker"], sqlite_where=held, postgresql_where=held)
