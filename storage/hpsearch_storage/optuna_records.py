"""What Optuna's clients ask of a store: each method is one durable transaction."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import ChainMap
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, insert, select, update

from hpsearch.errors import Conflict, InvalidInput, NotFound
from hpsearch.spec import STUDY_NAME, StudySpec, parse_study
from hpsearch.study import NewStage
from hpsearch.trial import TrialState
from hpsearch_storage import events, optuna_documents, optuna_patches, stages, studies, tables
from hpsearch_storage.codec import decode, encode
from hpsearch_storage.dialects import upsert
from hpsearch_storage.engine import Database
from hpsearch_storage.optuna_space import Interned, check_name

if TYPE_CHECKING:
    from hpsearch.integrations.optuna.backend import Created, Outcome, Patch, Position, StudyDocument

T = TypeVar("T")

_MAX_INTERNED = 100_000
_FORBIDDEN = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_OUR_NAME = 100


def our_name(name: str) -> str:
    """The name of a study of ours for a name in Optuna: itself if our rule allows it, else a readable part of it and
    a digest.
    """
    if re.fullmatch(STUDY_NAME, name) and len(name) <= _MAX_OUR_NAME:
        return name
    part = _FORBIDDEN.sub("-", name)[:60].strip("-._") or "optuna"
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{part}-{digest}"


def study_of(name: str, directions: Sequence[str]) -> StudySpec:
    """The study of ours that stands for one of Optuna. Raises InvalidInput for no or other directions."""
    if not directions or any(direction not in ("minimize", "maximize") for direction in directions):
        raise InvalidInput(f"directions {list(directions)!r}: give minimize or maximize for each objective")
    many = f"{len(directions)} objectives ({', '.join(directions)}); value and best are of the first."
    return parse_study(
        {
            "name": our_name(name),
            "notes": many if len(directions) > 1 else "",
            "tags": ["optuna"],
            "objective": {"kind": "external"},
            "metric": {"name": "value", "direction": directions[0]},
            "space": {},
            "stages": [{"name": "trials", "open_ended": True}],
        }
    )


class OptunaRecords:
    """See :class:`hpsearch.integrations.optuna.backend.Backend`; views are JSON text here, ready to be sent.

    Every method raises NotFound, Conflict and InvalidInput as that one says; ``now`` is the server's time.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._interned: dict[tuple[int, str, str], int] = {}

    def create_study(self, name: str | None, directions: Sequence[str], key: str, *, now: datetime) -> StudyDocument:
        """See Backend."""
        given = check_name(f"no-name-{uuid.uuid4()}" if name is None else name)
        spec = study_of(given, directions)

        def work(connection: Connection) -> StudyDocument:
            before = optuna_documents.study_documents(connection, tables.studies.c.idempotency_key == key)
            if before:
                return _first(before)
            study = studies.insert(connection, spec, key, preflight=False, now=now)
            if study is None:
                raise Conflict(f"there is a study {given!r} already: load it, or give another name")
            row = {"study_id": study.id, "name": given, "directions": list(directions)}
            connection.execute(insert(tables.optuna_studies).values(row | {"user_attrs": "{}", "system_attrs": "{}"}))
            opened = stages.open_(connection, study.id, 0, NewStage(spec.stages[0], spec.space, 0), now=now)
            state = ("study", {"state": study.state.value, "reason": None})
            events.append(connection, study.id, [state, opened], now=now)
            return {"id": study.id, "name": given, "directions": list(directions), "user": {}, "system": {}}

        return self._database.write(work)

    def delete_study(self, study_id: int) -> None:
        """See Backend."""

        def work(connection: Connection) -> None:
            studies.lock_one(connection, study_id)
            studies.remove(connection, study_id)

        self._database.write(work)

    def studies(self, *, after: int = 0, limit: int | None = None) -> list[StudyDocument]:
        """Studies with an id above ``after``, by id."""
        return self._database.read(
            lambda connection: optuna_documents.study_documents(connection, tables.studies.c.id > after, limit=limit)
        )

    def study(self, *, study_id: int | None = None, name: str | None = None) -> StudyDocument:
        """See Backend. A name is Optuna's or, where Optuna has no other, our own."""

        def work(connection: Connection) -> StudyDocument:
            if study_id is not None:
                found = optuna_documents.study_documents(connection, tables.studies.c.id == study_id)
            else:
                found = _named(connection, name or "")
            if not found:
                raise NotFound("study", name if study_id is None else study_id)
            return _first(found)

        return self._database.read(work)

    def set_attributes(self, study_id: int, kind: str, attributes: dict[str, str]) -> None:
        """See Backend."""
        for key in attributes:
            check_name(key)

        def work(connection: Connection) -> None:
            studies.lock_one(connection, study_id)
            columns = tables.optuna_studies.c
            row = connection.execute(select(tables.optuna_studies).where(columns.study_id == study_id)).first()
            before = {"user_attrs": "{}", "system_attrs": "{}"} if row is None else row._asdict()
            column = f"{kind}_attrs"
            text = encode(decode(before[column]) | attributes)
            statement = upsert(connection, tables.optuna_studies).values(
                {"study_id": study_id, "user_attrs": "{}", "system_attrs": "{}", column: text}
            )
            connection.execute(statement.on_conflict_do_update(index_elements=["study_id"], set_={column: text}))

        self._database.write(work)

    def create_trial(
        self, study_id: int, template: Patch | None, times: Sequence[int | None], key: str, *, now: datetime
    ) -> Created:
        """See Backend."""

        def work(connection: Connection, interned: Interned) -> Created:
            return optuna_patches.create(
                connection, study_id, template, times=times, key=key, interned=interned, now=now
            )

        try:
            return self._write(work)
        except optuna_patches.Repeated:
            return self._database.read(lambda connection: optuna_patches.created_before(connection, key))

    def apply(self, patches: Sequence[Patch], *, now: datetime) -> list[Outcome]:
        """See Backend."""
        if not patches:
            return []
        return self._write(lambda connection, interned: optuna_patches.apply(connection, patches, interned, now=now))

    def _write(self, work: Callable[[Connection, Interned], T]) -> T:
        """Run ``work`` in a transaction; the distributions that it met are remembered once that has succeeded."""
        met: dict[tuple[int, str, str], int] = {}

        def anew(connection: Connection) -> T:
            met.clear()
            return work(connection, ChainMap(met, self._interned))

        result = self._database.write(anew)
        if len(self._interned) > _MAX_INTERNED:
            self._interned = {}
        self._interned.update(met)
        return result

    def view(self, study_id: int, position: Position, needs: str) -> str:
        """What is new in a study, as the JSON text of a View."""
        return self._database.read(
            lambda connection: optuna_documents.changes(connection, study_id, **position, needs=needs)
        )

    def trial(self, trial_id: int) -> str:
        """``{"study": id, "view": View}`` of one trial, as JSON text."""
        return self._database.read(lambda connection: optuna_documents.one(connection, trial_id))

    def heartbeat(self, trial_id: int, *, now: datetime) -> None:
        """See Backend."""

        def work(connection: Connection) -> None:
            columns = tables.optuna_trials.c
            beat = update(tables.optuna_trials).where(columns.trial_id == trial_id).values(heartbeat_at=now)
            if connection.execute(beat).rowcount == 0:
                trials = tables.trials.c
                if connection.execute(select(trials.id).where(trials.id == trial_id)).first() is None:
                    raise NotFound("trial", trial_id)

        self._database.write(work)

    def stale_trials(self, study_id: int, grace: timedelta, *, now: datetime) -> list[int]:
        """See Backend."""

        def work(connection: Connection) -> list[int]:
            studies.check(connection, study_id)
            columns, trials = tables.optuna_trials.c, tables.trials.c
            query = select(trials.id).join(tables.optuna_trials, columns.trial_id == trials.id)
            query = query.where(trials.study_id == study_id, trials.state == TrialState.RUNNING)
            return list(connection.scalars(query.where(columns.heartbeat_at < now - grace).order_by(trials.id)))

        return self._database.read(work)


def _named(connection: Connection, name: str) -> list[Any]:
    found = optuna_documents.study_documents(connection, tables.optuna_studies.c.name == name)
    return found or optuna_documents.study_documents(connection, tables.studies.c.name == name)


def _first(found: list[Any]) -> StudyDocument:
    document: StudyDocument = found[0]
    return document
