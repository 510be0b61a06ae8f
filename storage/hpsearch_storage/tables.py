"""The tables. ``migrations/`` builds the same schema step by step; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    ForeignKeyConstraint,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    literal_column,
    text,
)

from hpsearch.study import StageState, StudyState
from hpsearch.trial import AttemptState, TrialState
from hpsearch_storage.columns import JsonText, Key, Moment, Real, Whole, Word, Words

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

studies = Table(
    "studies",
    metadata,
    Column("id", Key, nullable=False),
    Column("name", Words, nullable=False),
    Column("spec", Words, nullable=False),
    Column("kind", Words, nullable=False),  # of its objective
    Column("metric", Words, nullable=False),  # name of the number that is optimised
    Column("state", Word(StudyState), nullable=False),
    Column("reason", Words),
    Column("next_number", Whole, nullable=False),
    Column("last_event", Whole, nullable=False),
    Column("idempotency_key", Words),
    Column("created_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("preflight", JsonText),  # status, checks, and who may finish them; null: skipped
    PrimaryKeyConstraint("id"),
    UniqueConstraint("name"),
    UniqueConstraint("idempotency_key"),
    Index(None, "state"),
    sqlite_autoincrement=True,  # the id of a deleted study is never given to another
)

stages = Table(
    "stages",
    metadata,
    Column("id", Key, nullable=False),
    Column("study_id", Whole, nullable=False),
    Column("index", Whole, nullable=False),
    Column("name", Words, nullable=False),
    Column("spec", Words, nullable=False),
    Column("space", Words, nullable=False),
    Column("n_trials", Whole, nullable=False),
    Column("n_created", Whole, nullable=False),
    Column("parent", Words),
    Column("difference", JsonText),
    Column("state", Word(StageState), nullable=False),
    *(Column(f"n_{state.value}", Whole, nullable=False) for state in TrialState),
    Column("opened_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("origin", JsonText),  # plan, extension and the space to leave out; null: as planned
    Column("watched", Whole, nullable=False, server_default="0"),  # 1: may be settled before it is done
    Column("n_epochs", Whole, nullable=False, server_default="0"),  # that its ended trials trained
    Column("last_rung", Whole, nullable=False, server_default="0"),  # the last ``seq`` of its rungs
    PrimaryKeyConstraint("id"),
    ForeignKeyConstraint(["study_id"], ["studies.id"], ondelete="CASCADE"),
    UniqueConstraint("study_id", "index"),
    UniqueConstraint("study_id", "name"),
    sqlite_autoincrement=True,
)

trials = Table(
    "trials",
    metadata,
    Column("id", Key, nullable=False),
    Column("study_id", Whole, nullable=False),
    Column("stage_id", Whole, nullable=False),
    Column("number", Whole, nullable=False),
    Column("state", Word(TrialState), nullable=False),
    Column("params", JsonText, nullable=False),
    Column("value", Real),
    Column("step", Whole, nullable=False),
    Column("reason", Words),
    Column("n_attempts", Whole, nullable=False),
    Column("n_lost", Whole, nullable=False),
    Column("worker", Words),
    Column("created_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    Column("verdicts", JsonText),  # null: none
    Column("behind", Whole, nullable=False, server_default="0"),  # epochs of the trial that it goes on from
    PrimaryKeyConstraint("id"),
    ForeignKeyConstraint(["study_id"], ["studies.id"], ondelete="CASCADE"),
    ForeignKeyConstraint(["stage_id"], ["stages.id"], ondelete="CASCADE"),
    UniqueConstraint("study_id", "number"),
    Index(None, "stage_id", "state", "number"),
    Index(None, "study_id", "state", "value"),
    Index(None, "study_id", "value"),
    sqlite_autoincrement=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Key, nullable=False),
    Column("trial_id", Whole, nullable=False),
    Column("study_id", Whole, nullable=False),  # its trial's, so that a token leads to what to lock without a join
    Column("number", Whole, nullable=False),
    Column("token", Words, nullable=False),
    Column("worker", Words, nullable=False),
    Column("session", Words),
    Column("state", Word(AttemptState), nullable=False),
    Column("step", Whole),  # the last that this attempt reported
    Column("reason", Words),
    Column("started_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Column("ended_at", Moment),
    PrimaryKeyConstraint("id"),
    ForeignKeyConstraint(["trial_id"], ["trials.id"], ondelete="CASCADE"),
    UniqueConstraint("trial_id", "number"),
    UniqueConstraint("token"),
    # Of leases that hold alone, and not by when they expire: what every report changes stands in no index.
    Index(
        "ix_attempts_running",
        "worker",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    sqlite_autoincrement=True,
)
HELD = attempts.c.state == literal_column("'running'")
"""Of the attempts whose leases hold; written out, so that databases see that the index of them is meant."""

metrics = Table(
    "metrics",
    metadata,
    Column("trial_id", Whole, nullable=False),
    Column("step", Whole, nullable=False),
    Column("values", Words, nullable=False),
    PrimaryKeyConstraint("trial_id", "step"),
    ForeignKeyConstraint(["trial_id"], ["trials.id"], ondelete="CASCADE"),
    sqlite_with_rowid=False,
)

logs = Table(  # the end of what trials of users' own code wrote
    "logs",
    metadata,
    Column("trial_id", Whole, nullable=False),
    Column("text", Words, nullable=False),
    PrimaryKeyConstraint("trial_id"),
    ForeignKeyConstraint(["trial_id"], ["trials.id"], ondelete="CASCADE"),
)

rungs = Table(
    "rungs",
    metadata,
    Column("stage_id", Whole, nullable=False),
    Column("bracket", Whole, nullable=False),
    Column("step", Whole, nullable=False),
    Column("trial", Whole, nullable=False),  # its number
    Column("value", Real),  # null: not finite
    Column("went_on", Whole, nullable=False),  # 0 or 1
    Column("seq", Whole, nullable=False),  # rises within the stage with every change
    PrimaryKeyConstraint("stage_id", "bracket", "step", "trial"),
    ForeignKeyConstraint(["stage_id"], ["stages.id"], ondelete="CASCADE"),
    UniqueConstraint("stage_id", "seq"),
    sqlite_with_rowid=False,
)

optuna_studies = Table(  # what Optuna says of a study beyond our own words; no row: nothing
    "optuna_studies",
    metadata,
    Column("study_id", Whole, nullable=False),
    Column("name", Words),  # null: the study's own
    Column("directions", JsonText),  # null: the study's own
    Column("user_attrs", Words, nullable=False),
    Column("system_attrs", Words, nullable=False),
    PrimaryKeyConstraint("study_id"),
    ForeignKeyConstraint(["study_id"], ["studies.id"], ondelete="CASCADE"),
    UniqueConstraint("name"),
)

optuna_distributions = Table(
    "optuna_distributions",
    metadata,
    Column("id", Key, nullable=False),
    Column("study_id", Whole, nullable=False),
    Column("name", Words, nullable=False),  # of the parameter
    Column("distribution", Words, nullable=False),  # as Optuna writes it
    Column("digest", Words, nullable=False),  # of name and distribution, which may be too long for an index
    PrimaryKeyConstraint("id"),
    ForeignKeyConstraint(["study_id"], ["studies.id"], ondelete="CASCADE"),
    UniqueConstraint("study_id", "digest"),
    Index(None, "study_id", "name"),
    sqlite_autoincrement=True,
)

optuna_trials = Table(
    "optuna_trials",
    metadata,
    Column("trial_id", Whole, nullable=False),
    Column("document", Words, nullable=False),  # see optuna_documents
    Column("ended", Whole, nullable=False),  # 1: the document is whole, and never changes
    Column("heartbeat_at", Moment),
    Column("create_key", Words),  # of the request that created it
    Column("end_key", Words),  # of the request that ended it
    PrimaryKeyConstraint("trial_id"),
    ForeignKeyConstraint(["trial_id"], ["trials.id"], ondelete="CASCADE"),
    UniqueConstraint("create_key"),
)

acknowledgements = Table(
    "acknowledgements",
    metadata,
    Column("study_id", Whole, nullable=False),
    Column("stage", Words, nullable=False),
    Column("parameter", Words, nullable=False),
    Column("side", Words, nullable=False),
    Column("note", Words, nullable=False),
    Column("at", Moment, nullable=False),
    PrimaryKeyConstraint("study_id", "stage", "parameter", "side"),
    ForeignKeyConstraint(["study_id"], ["studies.id"], ondelete="CASCADE"),
    sqlite_with_rowid=False,
)

events = Table(
    "events",
    metadata,
    Column("study_id", Whole, nullable=False),
    Column("seq", Whole, nullable=False),
    Column("kind", Words, nullable=False),
    Column("at", Moment, nullable=False),
    Column("data", JsonText, nullable=False),
    PrimaryKeyConstraint("study_id", "seq"),
    ForeignKeyConstraint(["study_id"], ["studies.id"], ondelete="CASCADE"),
    sqlite_with_rowid=False,
)

workers = Table(
    "workers",
    metadata,
    Column("name", Words, nullable=False),
    Column("info", JsonText, nullable=False),
    Column("first_seen", Moment, nullable=False),
    Column("last_seen", Moment, nullable=False),
    PrimaryKeyConstraint("name"),
    Index(None, "last_seen"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Key, nullable=False),
    Column("name", Words, nullable=False),
    Column("digest", Words, nullable=False),  # SHA-256 of the secret, which is kept nowhere
    Column("scopes", JsonText, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("name"),
    UniqueConstraint("digest"),
    sqlite_autoincrement=True,
)

sessions = Table(  # logins of browsers
    "sessions",
    metadata,
    Column("digest", Words, nullable=False),
    Column("token_id", Whole),  # null: of a token that is not kept here
    Column("proof", Words),  # then, what only that token gives
    Column("expires_at", Moment, nullable=False),
    PrimaryKeyConstraint("digest"),
    ForeignKeyConstraint(["token_id"], ["tokens.id"], ondelete="CASCADE"),
    Index(None, "token_id", "expires_at"),
    Index(None, "expires_at"),
)
