"""Reports as nearly all are: the next steps of leases that hold.

:func:`hpsearch_storage.results.report` locks what it is about, reads it, writes, and commits: PostgreSQL is waited for
six times. Here nothing is locked or read: what is written follows from what was seen last, and is written under the
condition that this is so still, on PostgreSQL by one statement. Where it is not, or a report says something else, all
of it is left to that function.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection

from hpsearch.trial import AttemptState, Climbs, Decision, Report, RungEntry, RungPlace
from hpsearch_storage import attempts, metrics, rungs, trials
from hpsearch_storage.attempts import Reporting
from hpsearch_storage.codec import check_whole, encode_metrics, to_micros
from hpsearch_storage.prepared import Statement, change_rows, run_together
from hpsearch_storage.results import climbed, continued, to_record

_NEXT = "UPDATE attempts SET step = ?, expires_at = ? WHERE id = ? AND state = 'running' AND step IS ?"
_HEARD = """WITH heard AS (
        UPDATE attempts SET step = given.step, expires_at = %s
        FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[])
        AS given (id, before, step, steps, told)
        WHERE attempts.id = given.id AND attempts.state = 'running' AND attempts.step IS NOT DISTINCT FROM given.before
        RETURNING attempts.id, attempts.trial_id, given.step, given.steps, given.told
    ), moved AS (
        UPDATE trials SET step = heard.step FROM heard WHERE trials.id = heard.trial_id
    ), kept AS (
        INSERT INTO metrics (trial_id, step, "values") SELECT heard.trial_id, each.step, each.told
        FROM heard CROSS JOIN LATERAL
        unnest(string_to_array(heard.steps, ',')::bigint[], string_to_array(heard.told, chr(31))) AS each (step, told)
        ON CONFLICT (trial_id, step) DO UPDATE SET "values" = excluded."values"
    )"""
_GO_ON = Statement(f"{_HEARD} SELECT id FROM heard")
_CLIMB = Statement(
    f"""{_HEARD}, taken AS (
        UPDATE stages SET last_rung = last_rung + %s WHERE id = %s RETURNING id, last_rung
    ), recorded AS (
        INSERT INTO rungs (stage_id, bracket, step, trial, value, seq, went_on)
        SELECT taken.id, given.bracket, given.step, given.trial, given.value, taken.last_rung - given.left_over, 0
        FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::double precision[], %s::bigint[])
        AS given (attempt, bracket, step, trial, value, left_over)
        JOIN heard ON heard.id = given.attempt CROSS JOIN taken
        ON CONFLICT (stage_id, bracket, step, trial) DO NOTHING RETURNING seq
    )
    SELECT heard.id, taken.last_rung, (SELECT count(*) FROM recorded) FROM heard CROSS JOIN taken"""
)
Answer = tuple[list[Decision], list[list[RungEntry]]]
"""The decisions, and what is new of the rungs that were climbed."""
New = list[list[RungEntry]] | None
"""What is new of the rungs of each stage; None: it is to be read."""
_Climbing = tuple[int, int, int, int, float | None, int]
"""The attempt, the place, the value, and how many places are behind it."""


class Overtaken(Exception):
    """Not kept in this way: some report is no next step, or somebody else came between."""


class Going:
    """What this process last saw of attempts that are reported on: believed only as a condition."""

    KEPT = 20_000
    """Attempts, some 10 MB."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, Reporting] = OrderedDict()
        self._lock = threading.Lock()

    def report(
        self,
        connection: Connection,
        reports: Sequence[Report],
        climbs: Sequence[Climbs],
        *,
        now: datetime,
        ttl: timedelta,
    ) -> Answer:
        """See :meth:`hpsearch.store.Store.report`. On PostgreSQL each statement is a transaction of its own.

        Raises:
            Overtaken: all is to be kept in the other way; on PostgreSQL once more, what was kept.
        """
        rows = self._take({r.token for r in reports})
        if new := [r.token for r in reports if r.token not in rows]:
            rows |= attempts.reporting(connection, new, locked=False)
        steps = _Steps(_by_token(reports, rows), climbs, rows, to_micros(now + ttl))
        write = _together if connection.dialect.name == "postgresql" else _in_turn
        entries = write(connection, steps)
        self._keep({each.row.token: each.row._replace(step=each.last) for each in steps.of})
        if entries is None:
            entries = [rungs.after(connection, each.stage_id, each.after) for each in climbs]
        return [continued(r.token, rows[r.token]) for r in reports], entries

    def _take(self, tokens: Iterable[str]) -> dict[str, Reporting]:
        """What is known of tokens; it is forgotten until it has proved true."""
        with self._lock:
            return {token: row for token in tokens if (row := self._seen.pop(token, None)) is not None}

    def _keep(self, rows: dict[str, Reporting]) -> None:
        with self._lock:
            self._seen.update(rows)
            while len(self._seen) > self.KEPT:
                self._seen.popitem(last=False)


class _Next(NamedTuple):
    """The next steps of an attempt: step → metrics, steps rising."""

    row: Reporting
    told: dict[int, Mapping[str, float]]

    @property
    def last(self) -> int:
        """Where the attempt is afterwards."""
        return next(reversed(self.told))


@dataclass(frozen=True, slots=True)
class _Steps:
    """Next steps to be kept.

    Attributes:
        rows: token → its attempt as it was seen.
    """

    of: Collection[_Next]
    climbs: Sequence[Climbs]
    rows: dict[str, Reporting]
    expires_at: int


def _in_turn(connection: Connection, steps: _Steps) -> New:
    """Keep them on SQLite, in a transaction that is undone if this raises Overtaken."""
    seen = [(check_whole(each.last), steps.expires_at, each.row.id, each.row.step) for each in steps.of]
    if change_rows(connection, _NEXT, seen) < len(seen):
        raise Overtaken
    run_together(
        connection,
        metrics.to_put({(each.row.trial_id, step): told for each in steps.of for step, told in each.told.items()}),
        trials.steps_to_set({each.row.trial_id: each.last for each in steps.of}),
        *(to_record(connection, each, steps.rows) for each in steps.climbs),
    )
    return None


def _together(connection: Connection, steps: _Steps) -> New:
    """Keep them on PostgreSQL by one statement, but for those of others that came between: Overtaken."""
    if len(steps.climbs) > 1:
        raise Overtaken
    rows = steps.rows
    told = sorted((each.row.id, each.row.step, each.last, *_joined(each.told)) for each in steps.of)
    values = (steps.expires_at, *_columns(told))
    climbing = [each for of_stage in steps.climbs for each in _climbing(of_stage, rows)]
    if climbing:
        heard = _CLIMB.rows(connection, *values, len(climbing), steps.climbs[0].stage_id, *_columns(climbing))
    else:
        heard = _GO_ON.rows(connection, *values)
    if len(heard) < len(told):
        raise Overtaken
    return _only_own(steps.climbs[0], climbing, heard[0]) if climbing else None


def _only_own(climbs: Climbs, climbing: Sequence[_Climbing], said: tuple[int, int, int]) -> New:
    """The entries that were recorded just now, if all were and nobody else's lie before them unseen."""
    _, last_rung, n_recorded = said
    if n_recorded < len(climbing) or last_rung != climbs.after + len(climbing):
        return None
    return [
        [
            RungEntry(RungPlace(bracket, step, trial), value, went_on=False, seq=last_rung - left_over)
            for _, bracket, step, trial, value, left_over in climbing
        ]
    ]


def _by_token(reports: Sequence[Report], rows: Mapping[str, Reporting]) -> Collection[_Next]:
    """The reports of each attempt, if each step is behind all before: nothing is given up or taken back by them.

    Raises Overtaken.
    """
    found: dict[str, _Next] = {}
    for report in reports:
        row, step = rows.get(report.token), report.step
        if row is None or row.state != AttemptState.RUNNING or step is None:
            raise Overtaken
        told = found.setdefault(report.token, _Next(row, {})).told
        before = next(reversed(told), row.step)
        if step <= before if before is not None else row.number > 1 or row.behind:
            raise Overtaken
        told[step] = report.metrics
    return found.values()


def _joined(told: Mapping[int, Mapping[str, float]]) -> tuple[str, str]:
    """Steps and metrics, each as one text: JSON has no control characters."""
    return ",".join(str(check_whole(step)) for step in told), "\x1f".join(encode_metrics(m) for m in told.values())


def _climbing(climbs: Climbs, rows: dict[str, Reporting]) -> list[_Climbing]:
    """One for each place that is come to, in the order of places."""
    first = sorted(climbed(climbs, rows).items())
    return [
        (rows[climb.token].id, *place, rungs.kept(climb.value), len(first) - 1 - nth)
        for nth, (place, climb) in enumerate(first)
    ]


def _columns(rows: Sequence[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]
