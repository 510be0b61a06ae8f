"""A whole study as one file, and back: spec, stages, trials with attempts and metrics, events, and what else is kept.

A file is gzip of JSON lines: a head, the study's rows by table, a line for each trial with all that belongs to it, the
events, and an end that counts. Rows are as the database keeps them, under the names of their columns; keys are left
out and given anew. Tokens are left out, too: whoever reads a file must not be able to speak for a worker.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, select, text, type_coerce
from sqlalchemy.types import NullType

from hpsearch.errors import Conflict, InvalidInput, NotFound
from hpsearch.spec import parse_study
from hpsearch_storage import studies, tables
from hpsearch_storage.codec import check_text, decode, encode, to_micros
from hpsearch_storage.dialects import is_postgres
from hpsearch_storage.engine import Database
from hpsearch_storage.migrations import newest_version

FORMAT = "hpsearch-study"
CHUNK = 2_000
"""Trials, or events, read or written at a time."""
OF_STUDY = ("acknowledgements", "optuna_studies", "optuna_distributions")
OF_TRIAL = ("attempts", "metrics", "logs", "optuna_trials")
"""Tables whose rows belong to a study, and to a trial, and go into a file as they are."""
_SUSPICIOUS = re.compile(r"\\u(0000|[dD][89a-fA-F])")
"""A NUL, or half of a surrogate pair."""
_KEYS = ("id", "study_id", "stage_id", "trial_id")
_IMPORTING = "it is being imported; if nobody imports it any more, delete it"


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of an import."""

    name: str
    n_trials: int
    state: str


# -- out ----------------------------------------------------------------------------------------------------------


def write_file(database: Database, name: str, path: Path, *, now: datetime) -> int:
    """Write a study to a new file, as it is at one moment. Returns the number of its trials.

    Raises:
        NotFound: there is no such study.
        InvalidInput: the file is there already, or cannot be written.
    """
    if path.exists():
        raise InvalidInput(f"{path} is there already: give a new file")
    n_trials = 0
    try:
        with database.snapshot() as connection, gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
            for line in _lines(connection, name, now):
                n_trials += "trial" in line
                file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return n_trials


def _lines(connection: Connection, name: str, now: datetime) -> Iterator[dict[str, Any]]:
    study = _rows(connection, tables.studies, tables.studies.c.name == check_text(name))
    if not study:
        raise NotFound("study", name)
    study_id = study[0]["id"]
    yield {"format": FORMAT, "schema": newest_version(), "written_at": to_micros(now)}
    yield {"study": _without_keys(study[0]) | _checks(study[0]["preflight"])}
    names: dict[int, str] = {}
    for row in _rows(connection, tables.stages, tables.stages.c.study_id == study_id):
        names[row["id"]] = row["name"]
        yield {"stage": _without_keys(row), "rungs": _children(connection, "rungs", "stage_id", [row["id"]])}
    for table in OF_STUDY:
        rows = _rows(connection, tables.metadata.tables[table], tables.metadata.tables[table].c.study_id == study_id)
        # the key of a distribution stands in documents of trials
        yield {"table": table, "rows": [_without_keys(row) | {"key": row.get("id")} for row in rows]}
    n_trials = yield from _trials(connection, study_id, names)
    n_events = yield from _events(connection, study_id)
    yield {"end": {"trials": n_trials, "events": n_events}}


def _checks(preflight: str | None) -> dict[str, str]:
    """The checks of a study as they are exported: what a worker runs now waits, and nobody's token is told."""
    if preflight is None:
        return {}
    value = decode(preflight) | {"token": None}
    return {"preflight": encode({"status": "waiting"} if value["status"] == "running" else value)}


def _trials(connection: Connection, study_id: int, stages: Mapping[int, str]) -> Generator[dict[str, Any], None, int]:
    columns, first = tables.trials.c, 0
    while True:
        where = (columns.study_id == study_id, columns.number >= first, columns.number < first + CHUNK)
        rows = _rows(connection, tables.trials, *where)
        if not rows:
            return first
        children = {name: _by_trial(connection, name, [row["id"] for row in rows]) for name in OF_TRIAL}
        for row in rows:
            more = {name: found[row["id"]] for name, found in children.items() if row["id"] in found}
            yield {"trial": _without_keys(row), "stage_of": stages[row["stage_id"]], "id": row["id"], **more}
        first += len(rows)


def _events(connection: Connection, study_id: int) -> Generator[dict[str, Any], None, int]:
    columns, seq = tables.events.c, 0
    while True:
        rows = _rows(connection, tables.events, columns.study_id == study_id, columns.seq > seq, limit=CHUNK)
        if not rows:
            return seq
        yield {"events": [_without_keys(row) for row in rows]}
        seq = rows[-1]["seq"]


def _rows(connection: Connection, table: Table, *where: Any, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows by primary key, or by number or index, with what the database keeps: no type converts them."""
    order = [table.c.number] if table.name == "trials" else list(table.primary_key)
    columns = [type_coerce(column, NullType()).label(column.name) for column in table.columns]
    query = select(*columns).where(*where).order_by(*order).limit(limit)
    return [dict(row._mapping) for row in connection.execute(query)]


def _children(connection: Connection, table: str, parent: str, ids: list[int]) -> list[dict[str, Any]]:
    found = tables.metadata.tables[table]
    return [_without_keys(row, keep=parent == "trial_id") for row in _rows(connection, found, found.c[parent].in_(ids))]


def _by_trial(connection: Connection, table: str, ids: list[int]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for row in _children(connection, table, "trial_id", ids):
        found.setdefault(row.pop("trial_id"), []).append(row)
    return found


def _without_keys(row: Mapping[str, Any], *, keep: bool = False) -> dict[str, Any]:
    left_out = {*_KEYS, "token", "idempotency_key", "create_key", "end_key"} - ({"trial_id"} if keep else set())
    return {name: value for name, value in row.items() if name not in left_out and value is not None}


# -- in -----------------------------------------------------------------------------------------------------------


def read_file(database: Database, path: Path, *, name: str | None = None, now: datetime) -> Imported:
    """Add the study of a file, under another name if one is given.

    It is written in many transactions, so that whoever works on the store goes on, and appears as cancelled until all
    of it is there. A study that had not ended is paused: nothing is trained twice unasked. Trials that ran are queued.

    Raises:
        InvalidInput: no file of a study, a damaged one, or one of a newer program.
        Conflict: the name is taken.
    """
    lines = _read_lines(path)
    _check_head(next(lines, None), path)
    loader = _Loader(database, path, name, now)
    try:
        for line in lines:
            loader.take(line)
        return loader.finish()
    except BaseException:
        loader.undo()
        raise


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, which is read through once before: its checksum stands at its end."""
    try:
        with gzip.open(path, "rb") as packed:
            while packed.read(2**20):
                pass
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                value = json.loads(line)
                yield _checked(value) if _SUSPICIOUS.search(line) else value
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}") from None
    except (EOFError, zlib.error):
        raise InvalidInput(f"{path} is damaged or not whole; take another copy of it") from None
    except (gzip.BadGzipFile, UnicodeDecodeError, json.JSONDecodeError) as error:
        what = "is damaged" if "CRC" in str(error) else "is no file of hpsearch export --format study"
        raise InvalidInput(f"{path} {what}") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None


def _check_head(head: Any, path: Path) -> None:
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise InvalidInput(f"{path} is no file of hpsearch export --format study")
    if str(head.get("schema")) > newest_version():
        raise InvalidInput(f"{path} was written by a newer hpsearch (schema {head.get('schema')}): update hpsearch")


class _Loader:
    """Writes one study as its lines come."""

    def __init__(self, database: Database, path: Path, name: str | None, now: datetime) -> None:
        self._database = database
        self._path = path
        self._name = name
        self._now = now
        self._study: dict[str, Any] = {}
        self._id: int | None = None
        self._stages: dict[str, int] = {}
        self._distributions: dict[int, int] = {}
        self._waiting: list[dict[str, Any]] = []
        self._counted = {"trials": 0, "events": 0}
        self._is_whole = False

    def take(self, line: dict[str, Any]) -> None:
        """Write what a line says, or keep it until there is enough to write."""
        if "trial" in line:
            self._waiting.append(line)
            if len(self._waiting) >= CHUNK:
                self._flush()
            return
        self._flush()
        if "study" in line:
            self._begin(line["study"])
        elif "stage" in line:
            self._write(lambda connection: self._add_stage(connection, line))
        elif "table" in line:
            self._write(lambda connection: self._add_rows(connection, line["table"], line["rows"]))
        elif "events" in line:
            self._write(lambda connection: _insert(connection, tables.events, self._mine(line["events"])))
            self._counted["events"] += len(line["events"])
        elif "end" in line:
            self._is_whole = line["end"] == self._counted

    def finish(self) -> Imported:
        """Give the study its name and state."""
        if not self._is_whole or self._id is None:
            raise InvalidInput(f"{self._path} is not whole; take another copy of it")
        row = self._study
        changes: dict[str, Any] = {
            n: row.get(n) for n in ("name", "spec", "state", "reason", "ended_at", "next_number", "last_event")
        }
        if changes["state"] in ("running", "preflight", "paused"):
            changes |= {"state": "paused", "reason": "imported: resume it to go on"}
        self._write(_count_anew)
        self._write(lambda connection: self._end(connection, changes))
        return Imported(changes["name"], self._counted["trials"], changes["state"])

    def undo(self) -> None:
        """Remove what was written."""
        if self._id is not None:
            self._database.write(lambda connection: studies.remove(connection, self._id or 0))

    def _write(self, work: Any) -> None:
        if self._id is None:
            raise InvalidInput(f"{self._path} is damaged: it does not begin with its study")
        try:
            self._database.write(work)
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{self._path} is damaged: {error}") from None

    def _begin(self, row: dict[str, Any]) -> None:
        self._study = dict(row)
        if self._name is not None:
            self._study["name"] = check_text(self._name)
            self._study["spec"] = encode(decode(row["spec"]) | {"name": self._name})
        parse_study(decode(self._study["spec"]))
        hidden: dict[str, Any] = {"name": f"importing-{secrets.token_hex(8)}", "state": "cancelled"}
        hidden |= {"reason": _IMPORTING, "ended_at": to_micros(self._now)}
        hidden["spec"] = encode(decode(self._study["spec"]) | {"name": hidden["name"]})

        def work(connection: Connection) -> int:
            self._check_free(connection)
            _insert(connection, tables.studies, [self._study | hidden])
            key = select(tables.studies.c.id).where(tables.studies.c.name == hidden["name"])
            return int(connection.execute(key).scalar_one())

        self._id = self._database.write(work)

    def _check_free(self, connection: Connection) -> None:
        name = self._study["name"]
        if connection.execute(select(tables.studies.c.id).where(tables.studies.c.name == name)).first() is not None:
            raise Conflict(f"there is a study {name!r} already: give --name another")

    def _end(self, connection: Connection, changes: dict[str, Any]) -> None:
        self._check_free(connection)
        assigned = ", ".join(f"{name} = :{name}" for name in changes)
        connection.execute(text(f"UPDATE studies SET {assigned} WHERE id = :key"), changes | {"key": self._id})

    def _add_stage(self, connection: Connection, line: dict[str, Any]) -> None:
        row = line["stage"]
        running = row.get("n_running", 0)  # queued again: whoever held them knows another store
        row |= {"n_queued": row["n_queued"] + running, "n_running": 0}
        row.setdefault("last_rung", max((rung["seq"] for rung in line["rungs"]), default=0))
        _insert(connection, tables.stages, self._mine([row]))
        columns = tables.stages.c
        key = select(columns.id).where(columns.study_id == self._id, columns.name == row["name"])
        self._stages[row["name"]] = int(connection.execute(key).scalar_one())
        _insert(connection, tables.rungs, [{"stage_id": self._stages[row["name"]], **rung} for rung in line["rungs"]])

    def _add_rows(self, connection: Connection, table: str, rows: list[dict[str, Any]]) -> None:
        if table not in OF_STUDY:
            raise InvalidInput(f"{self._path} is damaged: it has a table {table!r}")
        keys = [row.pop("key", None) for row in rows]
        if table == "optuna_studies" and self._name is not None:
            rows = [row | {"name": None} for row in rows]  # then its name there is the study's
        _insert(connection, tables.metadata.tables[table], self._mine(rows))
        if table == "optuna_distributions":
            columns = tables.optuna_distributions.c
            made = dict(
                connection.execute(select(columns.digest, columns.id).where(columns.study_id == self._id)).all()
            )
            self._distributions = {key: made[row["digest"]] for key, row in zip(keys, rows, strict=True)}

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._write(lambda connection: self._add_trials(connection, waiting))
            self._counted["trials"] += len(waiting)

    def _add_trials(self, connection: Connection, lines: list[dict[str, Any]]) -> None:
        rows = [line["trial"] | {"study_id": self._id, "stage_id": self._stages[line["stage_of"]]} for line in lines]
        _insert(connection, tables.trials, [_not_running(row) for row in rows])
        columns = tables.trials.c
        first, last = rows[0]["number"], rows[-1]["number"]
        query = select(columns.number, columns.id).where(columns.study_id == self._id)
        ids = {row.number: row.id for row in connection.execute(query.where(columns.number.between(first, last)))}
        for table in OF_TRIAL:
            children = []
            for line in lines:
                key = ids[line["trial"]["number"]]
                children += [self._child(table, row, key) for row in line.get(table, ())]
            _insert(connection, tables.metadata.tables[table], children)

    def _child(self, table: str, row: dict[str, Any], trial_id: int) -> dict[str, Any]:
        row = row | {"trial_id": trial_id}
        if table == "attempts":
            row |= {"study_id": self._id, "token": secrets.token_urlsafe(18)}
            if row["state"] == "running":
                row |= {"state": "released", "ended_at": to_micros(self._now), "reason": "the study was exported"}
        if table == "optuna_trials":
            row |= {"document": self._document(row["document"], trial_id), "create_key": None}
        return row

    def _document(self, document: str, trial_id: int) -> str:
        """What Optuna is told of a trial, with the keys that it has here."""
        value = json.loads(document)
        params = value[6] if isinstance(value, list) else value["params"]
        for i in range(2, len(params), 3):  # each: name, value, key of its distribution
            params[i] = self._distributions[params[i]]
        if isinstance(value, list):
            value[0] = trial_id
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def _mine(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"study_id": self._id} for row in rows]


def _count_anew(connection: Connection) -> None:
    """Have PostgreSQL look at the tables now; before it does by itself, in a minute, it sorts all trials for a page."""
    if is_postgres(connection):
        connection.exec_driver_sql(f"ANALYZE {', '.join(('studies', 'stages', *OF_TRIAL, 'trials', 'events'))}")


def _not_running(row: dict[str, Any]) -> dict[str, Any]:
    return row if row["state"] != "running" else row | {"state": "queued", "reason": "the study was exported"}


def _checked(value: Any) -> Any:
    """The value itself. Raises InvalidInput for a text in it that no database keeps."""
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _checked(each)
    return value


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Add rows as they are: columns that a row does not name are null, those that nobody knows are an error."""
    if not rows:
        return
    known = [column.name for column in table.columns if column.name != "id"]
    for name in {name for row in rows for name in row} - set(known):
        raise InvalidInput(f"the file names a column {name!r} of {table.name} that this hpsearch does not know")
    named = [name for name in known if any(name in row for row in rows)]
    columns = ", ".join(f'"{name}"' for name in named)
    if is_postgres(connection):
        types = ", ".join(f'"{name}" {table.c[name].type.compile(connection.dialect)}' for name in named)
        statement = (
            f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM json_to_recordset(%s) AS given ({types})"
        )
        connection.exec_driver_sql(statement, (json.dumps(rows, ensure_ascii=False),))
        return
    statement = f"INSERT INTO {table.name} ({columns}) VALUES ({', '.join('?' * len(named))})"
    connection.exec_driver_sql(statement, [tuple(map(row.get, named)) for row in rows])
