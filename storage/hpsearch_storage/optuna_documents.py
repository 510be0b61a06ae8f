"""Documents of studies and trials as Optuna's clients read them; see :mod:`hpsearch.integrations.optuna.backend`.

A trial that Optuna ended is kept as its whole document, so that reading it is one text. The document of another one
holds what our own columns do not (``params`` with their internal values and distributions, in order; ``user`` and
``system`` attributes; ``values``), and a trial that Optuna never wrote to has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select

from hpsearch.errors import NotFound
from hpsearch.study import Stage
from hpsearch.trial import TrialState
from hpsearch_storage import metrics, stages, tables, trials
from hpsearch_storage.codec import chunks, decode, decode_study, encode, to_micros
from hpsearch_storage.optuna_space import internal_params, text_of
from hpsearch_storage.prepared import Statement
from hpsearch_storage.trials import TrialRow

PAGE = 10_000
"""Trials in one view."""
EVENTS = 10_000
"""Events that one view follows."""
WAITING = 100
"""Waiting trials that are told without all the others."""
STATES = {
    TrialState.QUEUED: "WAITING",
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETED: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.DIVERGED: "FAIL",
    TrialState.FAILED: "FAIL",
    TrialState.CANCELLED: "FAIL",
}
"""What our states are to Optuna."""
_HEAD = Statement(
    """SELECT last_event, next_number, metric,
    EXISTS (SELECT 1 FROM trials WHERE study_id = studies.id AND state = 'queued') FROM studies WHERE id = %s"""
)
_EVENTS = Statement("SELECT seq, kind, data FROM events WHERE study_id = %s AND seq > %s ORDER BY seq LIMIT %s")
_BY_NUMBERS = Statement(
    f"""SELECT {trials.COLUMNS}, optuna_trials.ended, optuna_trials.document
    FROM trials JOIN stages ON stages.id = trials.stage_id
    LEFT JOIN optuna_trials ON optuna_trials.trial_id = trials.id
    WHERE trials.study_id = %s AND trials.number = ANY (%s::bigint[]) ORDER BY trials.number"""
)
_side = tables.optuna_trials.c
_trials = tables.trials.c


def study_documents(connection: Connection, *where: ColumnElement[bool], limit: int | None = None) -> list[Any]:
    """Studies by id."""
    columns, own = tables.studies.c, tables.optuna_studies.c
    query = select(columns.id, columns.name, columns.spec, own.name.label("given"), own.directions)
    query = query.add_columns(own.user_attrs, own.system_attrs)
    query = query.outerjoin(tables.optuna_studies, own.study_id == columns.id).where(*where).order_by(columns.id)
    return [
        {
            "id": row.id,
            "name": row.name if row.given is None else row.given,
            "directions": row.directions or [decode_study(row.spec).metric.direction],
            "user": decode(row.user_attrs or "{}"),
            "system": decode(row.system_attrs or "{}"),
        }
        for row in connection.execute(query.limit(limit))
    ]


def whole(
    row: TrialRow, document: Mapping[str, Any], steps: Iterable[tuple[int, float]], *, state: str, ended: int | None
) -> str:
    """The document of a trial."""
    started = None if row.started_at is None else to_micros(row.started_at)
    values = document.get("values")
    head = [row.id, row.number, state, values, started, ended]
    reported = list(chain.from_iterable(steps))
    return encode([*head, document["params"], document["user"], document["system"], reported])


class View:
    """Trials of one study, as text, with the distributions that they name."""

    def __init__(self, connection: Connection, study_id: int, metric: str) -> None:
        self._connection = connection
        self._study_id = study_id
        self._metric = metric
        self._stages: dict[str, Stage] | None = None
        self._native: dict[str, tuple[str, str]] = {}
        self.texts: list[str] = []

    def add(self, *where: ColumnElement[bool], may_have_ended: bool = True, limit: int | None = None) -> None:
        """Add the trials that meet conditions."""
        mine = _trials.study_id == self._study_id
        if may_have_ended:
            query = select(_side.document).join(tables.trials, _trials.id == _side.trial_id)
            self.texts += self._connection.scalars(query.where(mine, _side.ended == 1, *where).order_by(_trials.number))
        query = trials.select_rows().outerjoin(tables.optuna_trials, _side.trial_id == _trials.id)
        query = query.add_columns(_side.document).where(mine, or_(_side.ended.is_(None), _side.ended == 0), *where)
        query = query.order_by(_trials.number).limit(limit)
        self._show([(trials.to_row(row), row.document) for row in self._connection.execute(query)])

    def add_numbers(self, numbers: Iterable[int]) -> None:
        """Add a few trials."""
        rows = _BY_NUMBERS.rows(self._connection, self._study_id, sorted(numbers))
        self.texts += [document for *_, ended, document in rows if ended]
        self._show([(trials.of_values(*row), document) for *row, ended, document in rows if not ended])

    def _show(self, rows: Sequence[tuple[TrialRow, str | None]]) -> None:
        """Add trials that Optuna did not end, with what it noted of them."""
        steps = metrics.of_ids(self._connection, {row.id: row.number for row, _ in rows if row.started_at is not None})
        for row, text in rows:
            reported = [(s.step, s.values[self._metric]) for s in steps.get(row.id, ()) if self._metric in s.values]
            document = self._of_row(row) if text is None else decode(text)
            if text is not None and row.state.is_finished:
                document.pop("values", None)  # it was not Optuna that ended it
            if row.state in (TrialState.COMPLETED, TrialState.PRUNED) and row.value is not None:
                document.setdefault("values", [row.value])
            ended = None if row.ended_at is None or not row.state.is_finished else to_micros(row.ended_at)
            self.texts.append(whole(row, document, reported, state=STATES[row.state], ended=ended))

    def _of_row(self, row: TrialRow) -> dict[str, Any]:
        if self._stages is None:
            self._stages = {stage.name: stage for stage in stages.of_study(self._connection, self._study_id)}
        space = self._stages[row.stage].space
        params: list[Any] = []
        for name, value in internal_params(space, row.params):
            key = f"{row.stage}/{name}"
            if key not in self._native:
                self._native[key] = (name, text_of(space[name]))
            params += [name, value, key]
        return {"params": params, "user": {}, "system": {}}

    def distributions(self, *where: ColumnElement[bool]) -> list[list[Any]]:
        """Those of the study that meet conditions, and those of the stages whose trials are shown."""
        columns = tables.optuna_distributions.c
        query = select(columns.id, columns.name, columns.distribution).where(columns.study_id == self._study_id, *where)
        noted = [list(row) for row in self._connection.execute(query.order_by(columns.id))]
        return noted + [[key, name, text] for key, (name, text) in self._native.items()]

    def text(self, *, event: int, number: int, distributions: list[list[Any]], after: int, more: bool) -> str:
        """The view as JSON."""
        last = max([after, *(key for key, _, _ in distributions if isinstance(key, int))])
        head = {"event": event, "number": number, "distribution": last, "distributions": distributions, "more": more}
        return f'{encode(head)[:-1]},"trials":[{",".join(self.texts)}]}}'


def changes(connection: Connection, study_id: int, *, event: int, number: int, distribution: int, needs: str) -> str:
    """What changed in a study since a position. Raises NotFound.

    The study's row is read first: what others commit meanwhile is seen now or, by its event, the next time.

    What it ``needs`` is ``all``; ``ended``: running trials that are known already are left out; ``waiting``: nothing
    but trials that wait, the position stays (``more`` if there are too many, then ask for ``all``).
    """
    head = _HEAD.rows(connection, study_id)
    if not head:
        raise NotFound("study", study_id)
    last_event, next_number, metric, waits = head[0]
    view = View(connection, study_id, metric)
    if needs == "waiting" and not waits:
        return view.text(event=event, number=number, distributions=[], after=distribution, more=False)
    if needs == "waiting":
        return _waiting(view, event, number, distribution)
    upto = min(next_number, number + PAGE)
    more = upto < next_number
    if number == 0:
        event = last_event
    else:
        if last_event > event:
            event, changed, cut = _followed(connection, study_id, event, number)
            more = more or cut
            left_out = "RUNNING" if needs == "ended" else ""
            for some in chunks([number for number, state in changed.items() if STATES[state] != left_out]):
                view.add_numbers(some)
        if needs == "all":
            view.add(_trials.state == TrialState.RUNNING, _trials.number < number, may_have_ended=False)
    if upto > number:
        view.add(_trials.number >= number, _trials.number < upto)
    noted = view.distributions(tables.optuna_distributions.c.id > distribution) if view.texts else []
    return view.text(event=event, number=max(upto, number), distributions=noted, after=distribution, more=more)


def _waiting(view: View, event: int, number: int, distribution: int) -> str:
    view.add(_trials.state == TrialState.QUEUED, may_have_ended=False, limit=WAITING + 1)
    more = len(view.texts) > WAITING
    noted = view.distributions(tables.optuna_distributions.c.id > distribution) if view.texts else []
    return view.text(event=event, number=number, distributions=noted, after=distribution, more=more)


def _followed(
    connection: Connection, study_id: int, event: int, number: int
) -> tuple[int, dict[int, TrialState], bool]:
    """The last event followed, the last states of trials below a number, and whether there are more events."""
    rows = _EVENTS.rows(connection, study_id, event, EVENTS)
    told = (decode(data) for _, kind, data in rows if kind == "trial")
    changed = {data["number"]: TrialState(data["state"]) for data in told if data["number"] < number}
    return (rows[-1][0] if rows else event), changed, len(rows) == EVENTS


def one(connection: Connection, trial_id: int) -> str:
    """A view of one trial, and its study's id. Raises NotFound."""
    columns = tables.studies.c
    query = select(columns.id, columns.metric).join(tables.trials, _trials.study_id == columns.id)
    study = connection.execute(query.where(_trials.id == trial_id)).first()
    if study is None:
        raise NotFound("trial", trial_id)
    view = View(connection, study.id, study.metric)
    view.add(_trials.id == trial_id)
    keys = [key for key in decode(view.texts[0])[6][2::3] if isinstance(key, int)]
    noted = view.distributions(tables.optuna_distributions.c.id.in_(keys))
    text = view.text(event=0, number=0, distributions=noted, after=0, more=False)
    return f'{{"study":{study.id},"view":{text}}}'
