"""Verdicts of trials, and the checks before a study's first stage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("studies", sa.Column("preflight", sa.Text))
    op.add_column("trials", sa.Column("verdicts", sa.Text))
