"""The first schema: studies, stages, trials, attempts, metrics, events, workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Nothing here is imported from tables.py: this step stays as it is when the tables change.
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TRIAL_STATES = ("queued", "running", "completed", "pruned", "diverged", "failed", "cancelled")


def upgrade() -> None:
    """Create the tables."""
    _create_studies()
    _create_stages()
    _create_trials()
    _create_attempts()
    _create_logs()


def _create_studies() -> None:
    op.create_table(
        "studies",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("next_number", sa.BigInteger, nullable=False),
        sa.Column("last_event", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint("name", name="uq_studies_name"),
        sa.UniqueConstraint("idempotency_key", name="uq_studies_idempotency_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_studies_state", "studies", ["state"])


def _create_stages() -> None:
    op.create_table(
        "stages",
        sa.Column("id", KEY, nullable=False),
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("index", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("space", sa.Text, nullable=False),
        sa.Column("n_trials", sa.BigInteger, nullable=False),
        sa.Column("n_created", sa.BigInteger, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("difference", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        *(sa.Column(f"n_{state}", sa.BigInteger, nullable=False) for state in TRIAL_STATES),
        sa.Column("opened_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_stages"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_stages_study_id", ondelete="CASCADE"),
        sa.UniqueConstraint("study_id", "index", name="uq_stages_study_id_index"),
        sa.UniqueConstraint("study_id", "name", name="uq_stages_study_id_name"),
        sqlite_autoincrement=True,
    )


def _create_trials() -> None:
    op.create_table(
        "trials",
        sa.Column("id", KEY, nullable=False),
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("stage_id", sa.BigInteger, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("params", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("n_attempts", sa.BigInteger, nullable=False),
        sa.Column("n_lost", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_trials"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_trials_study_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["stage_id"], ["stages.id"], name="fk_trials_stage_id", ondelete="CASCADE"),
        sa.UniqueConstraint("study_id", "number", name="uq_trials_study_id_number"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_trials_stage_id_state_number", "trials", ["stage_id", "state", "number"])
    op.create_index("ix_trials_study_id_state_value", "trials", ["study_id", "state", "value"])
    op.create_index("ix_trials_study_id_value", "trials", ["study_id", "value"])


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", KEY, nullable=False),
        sa.Column("trial_id", sa.BigInteger, nullable=False),
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("session", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger),
        sa.Column("reason", sa.Text),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_attempts_trial_id", ondelete="CASCADE"),
        sa.UniqueConstraint("trial_id", "number", name="uq_attempts_trial_id_number"),
        sa.UniqueConstraint("token", name="uq_attempts_token"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_attempts_state_expires_at", "attempts", ["state", "expires_at"])
    op.create_index("ix_attempts_worker_state", "attempts", ["worker", "state"])


def _create_logs() -> None:
    op.create_table(
        "metrics",
        sa.Column("trial_id", sa.BigInteger, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("values", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("trial_id", "step", name="pk_metrics"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_metrics_trial_id", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "events",
        sa.Column("study_id", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("study_id", "seq", name="pk_events"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_events_study_id", ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("info", sa.Text, nullable=False),
        sa.Column("first_seen", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )
