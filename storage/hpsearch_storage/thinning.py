"""Fewer steps of trials whose study has ended: asked for by a user, told in the study's log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from hpsearch.errors import InvalidInput
from hpsearch_storage import events, studies
from hpsearch_storage.codec import check_text, to_micros
from hpsearch_storage.engine import Database
from hpsearch_storage.prepared import Statement

_ENDED = Statement(
    """SELECT id, name FROM studies WHERE ended_at IS NOT NULL AND ended_at <= %s
    AND state IN ('completed', 'cancelled', 'failed') ORDER BY id"""
)
_SPARE = """FROM metrics WHERE trial_id IN (SELECT id FROM trials WHERE study_id = %s AND number >= %s AND number < %s)
    AND step / %s * %s <> step
    AND step > (SELECT min(step) FROM metrics AS other WHERE other.trial_id = metrics.trial_id)
    AND step < (SELECT max(step) FROM metrics AS other WHERE other.trial_id = metrics.trial_id)"""
_COUNT = Statement(f"SELECT count(*) {_SPARE}")
_DELETE = Statement(f"DELETE {_SPARE}")
_CHUNK = 2_000
"""Trials in one transaction, so that writers wait for a moment only."""


@dataclass(frozen=True, slots=True)
class Thinned:
    """What became of one study. ``n_removed``: rows of metrics, each one step of one trial."""

    study: str
    n_removed: int


def thin(
    database: Database,
    *,
    older_than: timedelta,
    keep_every: int,
    now: datetime,
    study: str | None = None,
    dry_run: bool = False,
) -> list[Thinned]:
    """Of studies that ended before, keep the first step of each trial, the last, and every so many-th between.

    What was removed is an event ``thinned`` of the study. Trials, values, verdicts and attempts stay as they are.

    Args:
        database: of a store.
        older_than: since their study ended.
        keep_every: steps that are multiples of it stay; at least 2.
        now: aware, UTC.
        study: only the study of this name.
        dry_run: count, and remove nothing.

    Raises:
        InvalidInput: keep_every below 2, or a study that has not ended so long ago.
        NotFound: there is no study of that name.
    """
    if keep_every < 2:
        raise InvalidInput(f"--keep-every {keep_every} would keep every step: give 2 or more")
    before = to_micros(now - older_than)
    ended = [(row[0], row[1]) for row in database.read(lambda c: _ENDED.rows(c, before))]
    if study is not None:
        found = database.read(lambda connection: studies.named(connection, check_text(study)))
        ended = [(study_id, name) for study_id, name in ended if study_id == found.id]
        if not ended:
            raise InvalidInput(f"the study {study!r} has not ended so long ago: only what has ended is thinned")
    done = [Thinned(name, _thin(database, key, keep_every, now=now, dry_run=dry_run)) for key, name in ended]
    return [each for each in done if each.n_removed]


def _thin(database: Database, study_id: int, keep_every: int, *, now: datetime, dry_run: bool) -> int:
    total, first = 0, 0
    n_trials = database.read(lambda connection: studies.by_ids(connection, [study_id])[study_id].next_number)
    while first < n_trials:
        values = (study_id, first, first + _CHUNK, keep_every, keep_every)

        def work(connection: Connection, values: tuple[int, ...] = values) -> int:
            if dry_run:
                return int(_COUNT.rows(connection, *values)[0][0])
            if not studies.lock(connection, [study_id]):
                return 0  # deleted meanwhile
            n = _DELETE.run(connection, *values)
            if n:
                told = {"keep_every": keep_every, "n_removed": n, "trials": [values[1], values[2] - 1]}
                events.append(connection, study_id, [("thinned", told)], now=now)
            return n

        total += database.read(work) if dry_run else database.write(work)
        first += _CHUNK
    return total
