"""Whether a database holds what this program keeps in it: its schema, the file itself, and what our counters say."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from hpsearch.trial import TrialState
from hpsearch_storage.dialects import is_postgres
from hpsearch_storage.engine import Database
from hpsearch_storage.migrations import current_version, newest_version
from hpsearch_storage.stages import counter

_ENDED = "('completed', 'pruned', 'diverged', 'failed', 'cancelled')"
RULES: dict[str, str] = {
    "a stage counts other trials than it has": " UNION ALL ".join(
        f"""SELECT stages.study_id, stages.name FROM stages WHERE stages.{counter(state)} <>
        (SELECT count(*) FROM trials WHERE trials.stage_id = stages.id AND trials.state = '{state.value}')"""
        for state in TrialState
    ),
    "a stage counts other epochs than its ended trials trained": f"""SELECT study_id, name FROM stages
        WHERE n_epochs <> (SELECT coalesce(sum(CASE WHEN step > behind THEN step - behind ELSE 0 END), 0) FROM trials
            WHERE trials.stage_id = stages.id AND trials.state IN {_ENDED})""",
    "the numbers of trials have a gap": """SELECT id, name FROM studies
        WHERE next_number <> (SELECT count(*) FROM trials WHERE study_id = studies.id)
        OR next_number <> (SELECT coalesce(max(number) + 1, 0) FROM trials WHERE study_id = studies.id)""",
    "the log has a gap": """SELECT id, name FROM studies
        WHERE last_event <> (SELECT count(*) FROM events WHERE study_id = studies.id)
        OR last_event <> (SELECT coalesce(max(seq), 0) FROM events WHERE study_id = studies.id)""",
    "a running trial is held by nobody, or by two": """SELECT study_id, number FROM trials WHERE state = 'running'
        AND 1 <> (SELECT count(*) FROM attempts WHERE trial_id = trials.id AND attempts.state = 'running')
        AND NOT EXISTS (SELECT 1 FROM optuna_trials WHERE trial_id = trials.id)""",
    "a lease holds a trial that does not run": """SELECT attempts.study_id, trials.number FROM attempts
        JOIN trials ON trials.id = attempts.trial_id WHERE attempts.state = 'running' AND trials.state <> 'running'""",
    "a trial has another number of attempts than it counts": """SELECT study_id, number FROM trials
        WHERE n_attempts <> (SELECT count(*) FROM attempts WHERE trial_id = trials.id)""",
    "a trial was finished by two attempts": """SELECT trials.study_id, trials.number FROM trials
        JOIN attempts ON attempts.trial_id = trials.id WHERE attempts.state = 'finished'
        GROUP BY trials.id, trials.study_id, trials.number
        HAVING count(*) > 1 + (SELECT count(*) FROM rungs WHERE rungs.stage_id = trials.stage_id
            AND rungs.trial = trials.number AND rungs.went_on = 1)""",
    "a completed trial has no value": """SELECT study_id, number FROM trials WHERE state = 'completed' AND value IS NULL
        AND NOT EXISTS (SELECT 1 FROM optuna_trials WHERE trial_id = trials.id)""",
    "an ended study has open trials": """SELECT trials.study_id, trials.number FROM trials
        JOIN studies ON studies.id = trials.study_id WHERE trials.state IN ('queued', 'running')
        AND studies.state IN ('completed', 'cancelled', 'failed')
        AND NOT EXISTS (SELECT 1 FROM optuna_trials WHERE trial_id = trials.id)""",
}
"""What must not be → the question that finds it: study and name of what is wrong."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check came to.

    Attributes:
        version: of the schema, None for an empty database.
        newest: the version that this program brings it to.
        faults: a sentence each.
    """

    version: str | None
    newest: str
    faults: tuple[str, ...]


def check(database: Database) -> Checked:
    """Look at a database and change nothing. Servers may work on it meanwhile."""
    with database.snapshot() as connection:
        return look(connection)


def look(connection: Connection) -> Checked:
    """As :func:`check`, in a transaction that is there."""
    version, newest = current_version(connection), newest_version()
    faults = [] if is_postgres(connection) else _file_faults(connection)
    if version == newest and not faults:
        faults = [fault for what, query in RULES.items() if (fault := _fault(connection, what, query))]
    return Checked(version, newest, tuple(faults))


def _file_faults(connection: Connection) -> list[str]:
    said = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check")]
    faults = [f"the file is damaged: {line}" for line in said[:_SHOWN] if line != "ok"]
    orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return faults + ([f"{len(orphans)} rows belong to nothing, the first in {orphans[0][0]}"] if orphans else [])


def _fault(connection: Connection, what: str, query: str) -> str | None:
    found = connection.exec_driver_sql(query).all()
    if not found:
        return None
    some = ", ".join(f"{name} of study {study_id}" for study_id, name in found[:_SHOWN])
    return f"{what}: {some}{' …' if len(found) > _SHOWN else ''} ({len(found)} in all)"
