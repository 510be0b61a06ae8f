"""Pages of trials in any order: by position (keyset), so that a late page costs what the first one does.

A sort key that may be missing is read in parts, those with the key first and those without it after them: each
part is a range of an index, and "missing comes last" holds in either direction on both databases.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Row,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    or_,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSON

from hpsearch.document import unknown
from hpsearch.errors import InvalidInput
from hpsearch.space import Space
from hpsearch.store import SORT_KEYS, Page, Table, TrialQuery
from hpsearch.trial import Trial
from hpsearch_storage import stages, studies, tables, trials
from hpsearch_storage.codec import MAX_WHOLE, decode, encode
from hpsearch_storage.columns import Whole, Words
from hpsearch_storage.dialects import is_postgres

MAX_LIMIT = 1_000_000
"""No page is longer than this."""
MAX_FROM_STATES = 1000
"""A longer page of some states is read in the order of the study's numbers, as a whole export is."""
MAX_FIRSTS = 100
"""The same where there are more pairs of stage and state: SQLite takes 500 parts of a statement."""
_NULLABLE = ("value", "started_at", "ended_at")
_trials = tables.trials.c


@dataclass(frozen=True, slots=True)
class Part:
    """Trials that meet a condition, by one key (None: by number alone)."""

    key: ColumnElement[Any] | None
    kind: type[Any]
    condition: ColumnElement[bool] | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """The last trial of a page: its part, the key it has there, its number."""

    part: int
    key: Any
    number: int


Raw = Sequence[tuple[Any, ...]]


def page(connection: Connection, study_id: int, query: TrialQuery) -> Page[Trial]:
    """A page of a study's trials. Raises NotFound, InvalidInput."""
    rows, cursor = _page(connection, study_id, query)
    return Page([trials.of_values(*row).shown() for row in rows], cursor)


def table(connection: Connection, study_id: int, query: TrialQuery) -> tuple[Table, str | None]:
    """The same by columns, and the cursor that continues after them."""
    rows, cursor = _page(connection, study_id, query)
    found = dict(zip(trials.FIELDS, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(trials.FIELDS, ())
    verdicts = ["" if text is None else " ".join(v["name"] for v in decode(text)) for text in found["verdicts"]]
    params = [decode(text) for text in found["params"]]
    plain = (field.name for field in fields(Table) if field.name not in ("verdicts", "params"))
    return Table(**{name: found[name] for name in plain}, verdicts=verdicts, params=params), cursor


def _page(connection: Connection, study_id: int, query: TrialQuery) -> tuple[Raw, str | None]:
    """Values of trials, as the database keeps them, and the cursor that continues after them."""
    limit = check_limit(query.limit)
    falling, name = query.sort.startswith("-"), query.sort.removeprefix("-")
    space = studies.document(connection, study_id).space
    parts = _parts(connection, name, space)
    mark = _fingerprint(study_id, query)
    position = _position(query.after, mark, parts)
    where = _filter(connection, study_id, query)
    where += _within(connection, query, space) + _among(connection, query, space)
    if name == "number" and _by_state_alone(query):
        where = _first_of_states(connection, study_id, query, position, falling=falling, limit=limit + 1) or where
    n = len(trials.FIELDS)
    found: list[tuple[int, Row[Any]]] = []
    for i in range(position.part if position else 0, len(parts)):
        after = position if position and position.part == i else None
        rows = _read(connection, parts, i, where, after, falling=falling, limit=limit + 1 - len(found))
        found += [(i, row) for row in rows]
        if len(found) > limit:
            part, last = found[limit - 1]
            key = None if parts[part].key is None else last.sort_key
            return [row[:n] for _, row in found[:limit]], encode_cursor([mark, part, key, last.number])
    return [row[:n] for _, row in found], None


def check_limit(limit: int) -> int:
    """The page size, capped. Raises InvalidInput below 1."""
    if limit < 1:
        raise InvalidInput(f"limit {limit} is below 1: a page has at least one item")
    return min(limit, MAX_LIMIT)


def encode_cursor(parts: Sequence[Any]) -> str:
    """An opaque text that is safe in a URL."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def decode_cursor(text: str, mark: str) -> list[Any]:
    """What :func:`encode_cursor` was given behind its mark. Raises InvalidInput if the mark is another."""
    try:
        parts = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        parts = None
    if not isinstance(parts, list) or not parts or parts[0] != mark:
        raise InvalidInput(
            f"the cursor {text[:80]!r} is not of this query: take 'next' of the page before, keep filter and sort"
        )
    return parts[1:]


def _fingerprint(study_id: int, query: TrialQuery) -> str:
    asked = (query.stage, sorted(query.states), query.verdict, query.within, query.among, query.every, query.sort)
    told = repr((study_id, *asked))
    return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _position(text: str | None, mark: str, parts: list[Part]) -> Position | None:
    if text is None:
        return None
    values = decode_cursor(text, mark)
    if len(values) == 3 and isinstance(values[0], int) and 0 <= values[0] < len(parts):
        part, key, number = values
        kind = parts[part].kind
        fits = isinstance(key, kind) or (kind is float and isinstance(key, int))
        if fits and all(abs(n) <= MAX_WHOLE for n in (key, number) if isinstance(n, int)) and isinstance(number, int):
            return Position(part, key, number)
    raise InvalidInput(f"the cursor {text[:80]!r} is damaged: take 'next' of the page before")


def _filter(connection: Connection, study_id: int, query: TrialQuery) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [_trials.study_id == study_id]
    if query.stage is not None:
        ids = [stage.id for stage in stages.of_study(connection, study_id) if stage.name == query.stage]
        where.append(_trials.stage_id.in_(ids))
    if query.verdict is not None:
        where.append(type_coerce(_trials.verdicts, Words).like(_like(query.verdict), escape="\\"))
    if query.states:
        where.append(_trials.state.in_(query.states))
    if query.every > 1:
        where.append(_trials.number % query.every == 0)
    return where


def _by_state_alone(query: TrialQuery) -> bool:
    """Whether a query asks for a short page of some states, and at most for a stage."""
    asks_more = query.verdict is not None or query.within or query.among or query.every > 1
    return bool(query.states) and not asks_more and query.limit <= MAX_FROM_STATES


def _first_of_states(
    connection: Connection, study_id: int, query: TrialQuery, after: Position | None, *, falling: bool, limit: int
) -> list[ColumnElement[bool]]:
    """The first trials by number of each stage and state: the page is among them. Empty for very many stages.

    An index has those in order. In the order of the study's numbers a state that few have is found late: SQLite, which
    keeps no statistics, would read a million trials for the one that runs.
    """
    found = stages.of_study(connection, study_id)
    ids = [stage.id for stage in found if query.stage in (None, stage.name)]
    number = _trials.number
    firsts = []
    pairs = list(itertools.product(ids, sorted(set(query.states))))
    for stage_id, state in pairs if len(pairs) <= MAX_FIRSTS else ():
        first = select(_trials.id).where(_trials.stage_id == stage_id, _trials.state == state)
        if after is not None:
            first = first.where(number < after.number if falling else number > after.number)
        first = first.order_by(number.desc() if falling else number).limit(limit)
        firsts.append(select(first.subquery().c.id))
    return [_trials.id.in_(union_all(*firsts))] if firsts else []


def _within(connection: Connection, query: TrialQuery, space: Space) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    for name, low, high in query.within:
        key = _parts(connection, name, space)[0].key
        if key is None:
            raise InvalidInput(f"trials have no range of {name}: give value or params.NAME")
        where.append(key.between(low, high))
    return where


def _among(connection: Connection, query: TrialQuery, space: Space) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    for name, choices in query.among:
        if name in SORT_KEYS:
            raise InvalidInput(f"trials have no choices of {name}: give params.NAME")
        _parts(connection, name, space)  # knows the names that there are
        number, text = _param(connection, name.removeprefix("params."))
        numbers = [c for c in choices if isinstance(c, int | float) and not isinstance(c, bool)]
        texts = [c if isinstance(c, str) else encode(c) for c in choices if isinstance(c, bool | str | list)]
        missing = and_(number.is_(None), text.is_(None))
        where.append(or_(number.in_(numbers), text.in_(texts), missing if None in choices else false()))
    return where


def _parts(connection: Connection, name: str, space: Space) -> list[Part]:
    if name == "number":
        return [Part(None, type(None))]
    if name == "step":
        return [Part(_trials.step, int)]
    if name == "state":
        return [Part(type_coerce(_trials.state, tables.studies.c.name.type), str)]
    if name == "stage":
        return [Part(_trials.stage_id, int)]  # ids rise with the index, which is of another table
    if name in _NULLABLE:
        column = _trials[name]
        key = column if name == "value" else type_coerce(column, Whole)
        kind = float if name == "value" else int
        return [Part(key, kind, column.is_not(None)), Part(None, type(None), column.is_(None))]
    known = [*SORT_KEYS, *(f"params.{param}" for param in space)]
    if name not in known:
        raise InvalidInput(unknown(name, known, what="sort key"))
    number, text = _param(connection, name.removeprefix("params."))
    return [
        Part(number, float, number.is_not(None)),
        Part(text, str, and_(number.is_(None), text.is_not(None))),
        Part(None, type(None), and_(number.is_(None), text.is_(None))),
    ]


def _param(connection: Connection, name: str) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """A param as number and as text; one of them, or both if there is none or it is null, are NULL."""
    if is_postgres(connection):
        params = cast(_trials.params, JSON)
        kind, text = func.json_typeof(params.op("->")(name)), params.op("->>", return_type=Text())(name)
        words = case((kind.in_(["string", "array", "boolean"]), text)).collate("C")
        return case((kind == "number", cast(text, Double))), words
    # json_each and not json_extract: a path cannot quote every name that a parameter may have
    each = func.json_each(_trials.params).table_valued("key", "value", "type", name="param").c
    numbers = case((each.type.in_(["integer", "real"]), cast(each.value, Double)))
    texts = case((each.type.in_(["text", "array"]), each.value), (each.type.in_(["true", "false"]), each.type))
    found = [select(column).where(each.key == name).correlate(tables.trials) for column in (numbers, texts)]
    return found[0].scalar_subquery(), found[1].scalar_subquery()


def _read(
    connection: Connection,
    parts: list[Part],
    index: int,
    where: list[ColumnElement[bool]],
    after: Position | None,
    *,
    falling: bool,
    limit: int,
) -> Sequence[Row[Any]]:
    part = parts[index]
    by_number = falling and len(parts) == 1 and part.key is None
    query = trials.select_rows().where(*where).limit(limit)
    if part.condition is not None:
        query = query.where(part.condition)
    if part.key is not None:
        query = query.add_columns(part.key.label("sort_key"))
        query = query.order_by(part.key.desc() if falling else part.key)
    query = query.order_by(_trials.number.desc() if by_number else _trials.number)
    if after is not None:
        beyond = _trials.number < after.number if by_number else _trials.number > after.number
        if part.key is not None:
            key = part.key
            # the first condition alone is what an index can use
            query = query.where(key <= after.key if falling else key >= after.key)
            beyond = or_(key < after.key if falling else key > after.key, beyond)
        query = query.where(beyond)
    return connection.execute(query).all()


def _like(verdict: str) -> str:
    """A pattern for the JSON text of verdicts, whose every item begins with its name."""
    name = encode({"name": verdict})[1:-1]
    for special in ("\\", "%", "_"):
        name = name.replace(special, "\\" + special)
    return f"%{name}%"
