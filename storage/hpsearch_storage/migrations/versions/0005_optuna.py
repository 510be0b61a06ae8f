"""What Optuna keeps of studies and trials beyond our own words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "optuna_studies",
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("directions", sa.Text),
        sa.Column("user_attrs", sa.Text, nullable=False),
        sa.Column("system_attrs", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("study_id", name="pk_optuna_studies"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_optuna_studies_study_id", ondelete="CASCADE"),
        sa.UniqueConstraint("name", name="uq_optuna_studies_name"),
    )
    op.create_table(
        "optuna_distributions",
        sa.Column("id", KEY, nullable=False),
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("distribution", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_optuna_distributions"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name="fk_optuna_distributions_study_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("study_id", "digest", name="uq_optuna_distributions_study_id_digest"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_optuna_distributions_study_id_name", "optuna_distributions", ["study_id", "name"])
    op.create_table(
        "optuna_trials",
        sa.Column("trial_id", sa.BigInteger, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("ended", sa.BigInteger, nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger),
        sa.Column("create_key", sa.Text),
        sa.Column("end_key", sa.Text),
        sa.PrimaryKeyConstraint("trial_id", name="pk_optuna_trials"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_optuna_trials_trial_id", ondelete="CASCADE"),
        sa.UniqueConstraint("create_key", name="uq_optuna_trials_create_key"),
    )
