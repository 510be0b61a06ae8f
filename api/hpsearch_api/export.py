"""Whole exports of a study's trials: CSV, a row at a time, and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hpsearch.space import Param
from hpsearch.store import Store, Table, TrialQuery
from hpsearch.study import Study
from hpsearch.trial import Trial

CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
PAGE = 5000
TABLE = 5_000
"""Trials that are read at a time, for CSV and for Parquet."""
FIELDS = (
    "number",
    "stage",
    "state",
    "value",
    "step",
    "reason",
    "n_attempts",
    "worker",
    "started_at",
    "ended_at",
    "verdicts",
)
"""Columns beside one ``params.NAME`` for each parameter."""


def csv_rows(store: Store, study: Study, query: TrialQuery) -> Iterator[str]:
    """Lines of CSV (RFC 4180), header first. Times are RFC 3339; a list as a choice is JSON.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*FIELDS, *(f"params.{name}" for name in study.spec.space)])
    for page in _pages(store, study, query):
        for trial in page:
            cells = [_cell(getattr(trial, name)) for name in FIELDS]
            writer.writerow([*cells, *(_cell(trial.params.get(name)) for name in study.spec.space)])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def parquet(store: Store, study: Study, query: TrialQuery) -> Iterator[bytes]:
    """A Parquet file with the same columns, in pieces as they are made: a row group for each page."""
    import pyarrow as pa  # heavy: only an export needs it
    import pyarrow.parquet as pq

    types = {**_FIELD_TYPES, "started_at": pa.timestamp("us", "UTC"), "ended_at": pa.timestamp("us", "UTC")}
    schema = pa.schema([*types.items(), *((f"params.{name}", _arrow(p)) for name, p in study.spec.space.items())])
    sink = _Pieces()
    with pq.ParquetWriter(sink, schema) as writer:
        for table in _tables(store, study, query):
            columns = [getattr(table, name) for name in FIELDS]
            for name, param in study.spec.space.items():
                values = [params.get(name) for params in table.params]
                columns.append(values if param.type != "categorical" else [_text(value) for value in values])
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))
            yield sink.taken()
    yield sink.taken()


_FIELD_TYPES = {
    name: {"number": "int64", "value": "float64", "step": "int64", "n_attempts": "int64"}.get(name, "string")
    for name in FIELDS
}


def _arrow(param: Param) -> str:
    return {"float": "float64", "int": "int64"}.get(param.type, "string")


class _Pieces(io.RawIOBase):
    """A file that is only written, whose content is taken away piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._n_written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._n_written += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._n_written

    def taken(self) -> bytes:
        found, self._pieces = b"".join(self._pieces), []
        return found


def _pages(store: Store, study: Study, query: TrialQuery) -> Iterator[list[Trial]]:
    after: str | None = None
    while True:
        page = store.trials(study.id, replace(query, limit=PAGE, after=after))
        yield page.items
        after = page.next
        if after is None:
            return


def _tables(store: Store, study: Study, query: TrialQuery) -> Iterator[Table]:
    after: str | None = None
    while True:
        table, after = store.table(study.id, replace(query, limit=TABLE, after=after))
        yield table
        if after is None:
            return


def _names(verdicts: tuple[dict[str, Any], ...]) -> str:
    return " ".join(verdict["name"] for verdict in verdicts)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _cell(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, tuple):
        return _names(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
