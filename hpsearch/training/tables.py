"""CSV and Parquet: columns of a table as features, images and labels."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from hpsearch.document import unknown
from hpsearch.errors import DataError
from hpsearch.objective import CsvData, ParquetData
from hpsearch.training.images import cached, decode_images
from hpsearch.training.labels import encode_labels
from hpsearch.training.samples import Samples, existing, finite


def read_csv(data: CsvData) -> Samples:
    """A CSV file with a header: every column but the label is a feature."""
    path = existing(data.path)
    with _reading_csv(data.path), pa.csv.open_csv(path) as reader:
        names = reader.schema.names
    _check_names([data.label], names, data.path)
    features = [name for name in names if name != data.label]
    _check_names(features, names, data.path)
    # Types are given, for those found in the first megabyte may not fit the rest of the file.
    types = {**dict.fromkeys(features, pa.float64()), data.label: pa.string()}
    with _reading_csv(data.path, names):
        one_thread = pa.csv.ReadOptions(use_threads=False)  # so that errors name the line
        table = pa.csv.read_csv(path, one_thread, convert_options=pa.csv.ConvertOptions(column_types=types))
    _check_not_empty(table.num_rows, features, data.path)
    labels = table[data.label]
    with contextlib.suppress(pa.ArrowInvalid):  # which means that they are words
        labels = labels.cast(pa.float64())
    return _samples(_columns(table, features, data.path), labels, None, _where(data.label, data.path))


@contextlib.contextmanager
def _reading_csv(path: str, names: Sequence[str] = ()) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        value = re.search(r"CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error.*invalid value '(.*)'", str(error))
        if value is None or not names:
            raise DataError(f"{path} is not a CSV file with a header, or is damaged: {error}") from None
        where = _where(names[int(value[1])], path)
        line = f" in line {value[2]}" if value[2] else ""
        raise DataError(f"{where} holds {value[3]!r}{line}: every column but the label must be numeric") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def read_parquet(data: ParquetData) -> Samples:
    """A Parquet file or a folder of them: a column of images, or numeric columns, and one of labels."""
    files = _files(data.path)
    tables = [_open(file) for file in files]
    schema = tables[0].schema_arrow
    image, features = _chosen(data, schema)
    wanted = [image] if image else features
    for file, table in zip(files, tables, strict=True):
        _check_names([data.label, *wanted], table.schema_arrow.names, str(file))
    _check_not_empty(sum(table.metadata.num_rows for table in tables), wanted, data.path)
    labels = _read(tables, files, [data.label])[data.label]
    where = _where(data.label, data.path)
    n_classes = _declared_classes(schema, data.label)
    if image is None:
        return _samples(_columns(_read(tables, files, features), features, data.path), labels, n_classes, where)

    def decode() -> NDArray[np.uint8]:
        column = _read(tables, files, [image])[image]
        cells = pa.compute.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        return decode_images(cells, where=_where(image, data.path))

    return _samples(cached(files, image, decode), labels, n_classes, where)


def _files(path: str) -> list[Path]:
    found = existing(path)
    if found.is_file():
        return [found]
    files = sorted(found.glob("*.parquet")) or sorted(found.rglob("*.parquet"))
    train = [file for file in files if file.name.startswith("train")]
    files = train or [file for file in files if not file.name.startswith(("test", "validation"))]
    if not files:
        raise DataError(f"the folder {path} holds no Parquet files to train on: name one that does, or a file")
    return files


def _open(file: Path) -> pa.parquet.ParquetFile:
    try:
        return pa.parquet.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is not a Parquet file, or is damaged: {error}") from None
    except OSError as error:
        raise _unreadable(str(file), error) from None


def _read(tables: Sequence[pa.parquet.ParquetFile], files: Sequence[Path], columns: list[str]) -> pa.Table:
    try:
        return pa.concat_tables([table.read(columns=columns) for table in tables])
    except (pa.ArrowException, OSError) as error:
        named = ", ".join(map(repr, columns[:5]))
        raise DataError(f"the columns {named} of {files[0].parent} cannot be read together: {error}") from None


def _chosen(data: ParquetData, schema: pa.Schema) -> tuple[str | None, list[str]]:
    """The column of images, or else the columns of features."""
    images = [f.name for f in schema if _is_image(f.type) and f.name != data.label]
    numeric = [f.name for f in schema if _is_numeric(f.type) and f.name != data.label]
    if data.image is not None and data.columns is not None:
        raise DataError("data.image and data.columns are both given: keep the one that holds the samples")
    if data.columns is not None:
        _check_names(data.columns, schema.names, data.path)
        _check_types(data.columns, numeric, schema, "a feature must be numeric and not the label")
        return None, data.columns
    if data.image is not None:
        _check_names([data.image], schema.names, data.path)
        _check_types([data.image], images, schema, "images are a struct with bytes, or binary")
        return data.image, []
    if len(images) > 1:
        raise DataError(f"{data.path} has several columns of images ({', '.join(images)}): name one as data.image")
    return (images[0], []) if images else (None, numeric)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _check_names(wanted: Sequence[str], names: list[str], path: str) -> None:
    for name in wanted:
        if name not in names:
            raise DataError(f"{path}: {unknown(name, names, what='column')}")
        if names.count(name) > 1:
            raise DataError(f"{path} has several columns {name!r}: rename all but one")


def _check_types(wanted: Sequence[str], allowed: list[str], schema: pa.Schema, rule: str) -> None:
    for name in wanted:
        if name not in allowed:
            raise DataError(f"the column {name!r} has the type {schema.field(name).type}: {rule}; name another column")


def _check_not_empty(n_rows: int, columns: Sequence[str], path: str) -> None:
    if n_rows == 0:
        raise DataError(f"{path} holds no samples: give a file with some")
    if not columns:
        raise DataError(f"{path} has no numeric column or images besides the label: there is nothing to learn from")


def _declared_classes(schema: pa.Schema, label: str) -> int | None:
    """The number of classes that Hugging Face's datasets write into a file's metadata, if it is there."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return len(features[label]["names"]) or None
    except (KeyError, TypeError, ValueError):
        return None


def _columns(table: pa.Table, names: Sequence[str], path: str) -> NDArray[np.float32]:
    arrays = [finite(table[name].to_numpy(), where=_where(name, path)) for name in names]
    return np.stack(arrays, axis=1)


def _samples(x: NDArray[Any], labels: pa.ChunkedArray, n_classes: int | None, where: str) -> Samples:
    kind = labels.type
    if pa.types.is_dictionary(kind):
        labels = labels.cast(kind.value_type)
    elif not (_is_numeric(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            f"{where} has the type {kind}: labels must be whole numbers or strings; name another as data.label"
        )
    y, found = encode_labels(labels.to_numpy(), where=where, n_classes=n_classes)
    return Samples(x, y, found)


def _where(column: str, path: str) -> str:
    return f"the column {column!r} of {path}"


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}")
