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
from hpsearch.objective.data import CsvData, ParquetData
from hpsearch.training.images import cached, decode_images
from hpsearch.training.labels import encode_labels
from hpsearch.training.samples import Samples, existing, finite, inside


def read_csv(data: CsvData, *, regression: bool) -> Samples:
    """A CSV file with a header: every column but the label is a feature; for a ``regression`` the label is a number."""
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
    where = _where(data.label, data.path)
    encoded = encode_labels(_plain(labels, where), where=where, regression=regression)
    return Samples(_columns(table, features, data.path), *encoded)


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


def read_parquet(data: ParquetData, *, regression: bool) -> Samples:
    """A Parquet file or a folder of them: a column of images, or numeric columns, and one of labels.

    Files of the folder that are named ``test*`` become :attr:`Samples.test`, unless their labels are withheld (there is
    no such column, or all of them are missing or −1, as in GLUE) or ``data.test`` asks for other samples.
    """
    files = _files(data.path)
    tables = [_open(file) for file in files]
    schema = tables[0].schema_arrow
    image, features = _chosen(data, schema)
    wanted = [image] if image else features
    _check_files(tables, files, [data.label, *wanted])
    _check_not_empty(sum(table.metadata.num_rows for table in tables), wanted, data.path)
    where = _where(data.label, data.path)
    labels = _plain(_read(tables, files, [data.label])[data.label], where)
    n_classes = _declared_classes(schema, data.label)
    test_files = [] if data.test is not None else _test_files(data.path)
    test_tables = [_open(file) for file in test_files]
    test_labels = _test_labels(test_tables, test_files, data)
    if test_labels is None:
        encoded = encode_labels(labels, where=where, n_classes=n_classes, regression=regression)
        return Samples(_features(tables, files, image, features, data.path), *encoded)
    _check_files(test_tables, test_files, wanted)
    # Together, so that words are numbered alike.
    both = encode_labels(_joined(labels, test_labels, where), where=where, n_classes=n_classes, regression=regression)
    x = _features(tables, files, image, features, data.path)
    test_x = _like(_features(test_tables, test_files, image, features, str(test_files[0])), x, test_files[0])
    values = both.values
    test = Samples(test_x, values[len(labels) :], both.n_classes, both.names)
    return Samples(x, values[: len(labels)], both.n_classes, both.names, test)


def _features(
    tables: Sequence[pa.parquet.ParquetFile], files: Sequence[Path], image: str | None, features: list[str], path: str
) -> NDArray[Any]:
    if image is None:
        return _columns(_read(tables, files, features), features, path)

    def decode() -> NDArray[np.uint8]:
        column = _read(tables, files, [image])[image]
        cells = pa.compute.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        return decode_images(cells, where=_where(image, path))

    return cached(files, image, decode)


def _test_labels(
    tables: Sequence[pa.parquet.ParquetFile], files: Sequence[Path], data: ParquetData
) -> NDArray[Any] | None:
    """Labels of the test files, or None where there are no such files or their labels are withheld."""
    if not files or any(data.label not in table.schema_arrow.names for table in tables):
        return None
    column = _read(tables, files, [data.label])[data.label]
    if column.null_count == len(column):
        return None
    labels = _plain(column, _where(data.label, str(files[0])))
    withheld = labels.dtype.kind in "if" and bool((labels == -1).all())
    return None if withheld else labels


def _joined(labels: NDArray[Any], test: NDArray[Any], where: str) -> NDArray[Any]:
    if (labels.dtype.kind in "OUS") != (test.dtype.kind in "OUS"):
        raise DataError(f"{where} holds words in some files and numbers in others: make them of one type")
    return np.concatenate([labels, test])


def _like(test: NDArray[Any], train: NDArray[Any], file: Path) -> NDArray[Any]:
    """Test samples of the shape of the training samples; grey images among coloured ones get three channels."""
    if test.ndim == 4 and test.shape[3] == 1 and train.shape[3] == 3:
        test = np.repeat(test, 3, axis=3)
    if test.shape[1:] != train.shape[1:]:
        shapes = " and ".join(" × ".join(map(str, x.shape[1:])) for x in (test, train))
        raise DataError(f"the samples of {file} and of the training files have different shapes, {shapes}: align them")
    return test


def _check_files(tables: Sequence[pa.parquet.ParquetFile], files: Sequence[Path], columns: Sequence[str]) -> None:
    for file, table in zip(files, tables, strict=True):
        _check_names(columns, table.schema_arrow.names, str(file))


def _files(path: str) -> list[Path]:
    found = existing(path)
    if found.is_file():
        return [found]
    files = _in_folder(found)
    train = [file for file in files if file.name.startswith("train")]
    files = train or [file for file in files if not file.name.startswith(("test", "validation"))]
    if not files:
        raise DataError(f"the folder {path} holds no Parquet files to train on: name one that does, or a file")
    return files


def _test_files(path: str) -> list[Path]:
    found = existing(path)
    return [] if found.is_file() else [file for file in _in_folder(found) if file.name.startswith("test")]


def _in_folder(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.parquet")) or sorted(folder.rglob("*.parquet"))
    return [inside(file, str(file)) for file in files]


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


def _plain(labels: pa.ChunkedArray, where: str) -> NDArray[Any]:
    kind = labels.type
    if pa.types.is_dictionary(kind):
        labels = labels.cast(kind.value_type)
    elif not (_is_numeric(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{where} has the type {kind}: labels must be numbers or strings; name another as data.label")
    plain: NDArray[Any] = labels.to_numpy()
    return plain


def _where(column: str, path: str) -> str:
    return f"the column {column!r} of {path}"


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror or error}")
