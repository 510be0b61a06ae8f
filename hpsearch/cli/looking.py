"""What a user's data are: which source reads them, what the label is, how many samples, features and classes.

Needs what trains (``hpsearch[train]``): data are read as a worker reads them, so what is wrong with them is said now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from pydantic import TypeAdapter

from hpsearch.errors import DataError, InvalidInput
from hpsearch.objective.data import Data
from hpsearch.training.samples import Samples
from hpsearch.training.sources import read_samples

LABELS = ("label", "labels", "target", "targets", "class", "category", "species", "outcome", "y", "fine_label")
"""What people call the column to predict, the likeliest first; compared without regard to case."""
ARRAYS = ("x", "data", "images", "features", "x_train", "arr_0")
ARRAY_LABELS = (*LABELS, "y_train", "arr_1")
TABLES = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".npz": "npz"}


@dataclass(frozen=True, slots=True)
class Seen:
    """Data as they were found.

    Attributes:
        data: ``objective.data`` of a study over them, without the sizes of its splits.
        x: (n, …) samples.
        y: (n,) labels: classes 0 … n_classes − 1, or numbers.
        n_classes: 0 where the labels are numbers to predict.
        n_test: samples that the source itself sets apart.
        notes: what is worth a second look, a sentence each.
    """

    data: dict[str, Any]
    x: NDArray[Any]
    y: NDArray[Any]
    n_classes: int
    n_test: int
    notes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (features,) or (height, width, channels)."""
        return self.x.shape[1:]

    @property
    def is_images(self) -> bool:
        """Whether a sample is an image."""
        return len(self.shape) == 3

    @property
    def class_sizes(self) -> tuple[int, int]:
        """Samples of the smallest and of the largest class, without those that have none; (0, 0) for numbers."""
        if not self.n_classes:
            return 0, 0
        counts = np.unique(self.y, return_counts=True)[1]
        return int(counts.min()), int(counts.max())


def find_data(folder: Path) -> str:
    """The only data in a folder. Raises InvalidInput where there are none, or several."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLES]
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("*.parquet"))]
    found = [path.name for path in (*files, *folders)]
    if not found:
        raise InvalidInput(
            "there is no CSV, Parquet or NPZ file here: hpsearch init PATH names your data, and "
            "hpsearch init digits takes images that come with hpsearch"
        )
    if len(found) > 1:
        more = ", …" if len(found) > 5 else ""
        raise InvalidInput(
            f"there are several data sets here ({', '.join(found[:5])}{more}): hpsearch init PATH names one"
        )
    return found[0]


def look(place: str, label: str | None = None) -> Seen:
    """Read what is at a path, or an embedded set.

    Args:
        place: a CSV, Parquet or NPZ file, a folder of Parquet files, or ``digits``.
        label: the column or array to predict; by default it is guessed, and a note says so where the name is no sign.

    Raises:
        DataError: the data cannot be used; the text says why.
        InvalidInput: it is none of these.
    """
    data, notes = _source(place, label)
    samples = _read(data)
    counting = _counting(samples.x, data)
    if counting is not None and data["source"] == "parquet":
        data["columns"] = [name for name in _columns(data) if name != counting]
        samples = _read(data)
        notes.append(f"the column {counting!r} counts the rows and is left out: it could give the answer away")
    elif counting is not None:
        notes.append(f"the column {counting!r} counts the rows: take it out of the file, it could give the answer away")
    n_test = 0 if samples.test is None else len(samples.test.y)
    return Seen(data, samples.x, samples.y, samples.n_classes, n_test, (*notes, *_labels_notes(samples)))


def _source(place: str, label: str | None) -> tuple[dict[str, Any], list[str]]:
    path = Path(place).expanduser()
    if place == "digits" and not path.exists():
        if label is not None:
            raise InvalidInput("digits have one label: leave --label out")
        return {"source": "digits"}, []
    if not path.exists():
        raise InvalidInput(f"there is no {place}: give a CSV, Parquet or NPZ file, a folder, or digits")
    source = "parquet" if path.is_dir() else TABLES.get(path.suffix.lower())
    if source is None:
        raise InvalidInput(
            f"{place} is by its name no CSV, Parquet or NPZ file: save it as one, or read it in code of your own "
            "(kind: python, docs/your_code.md)"
        )
    data: dict[str, Any] = {"source": source, "path": place}
    if source == "npz":
        return _arrays(data, path, label)
    name, note = _guessed(_names(path, place), LABELS, label, "column")
    return data | {"label": name}, note


def _names(path: Path, place: str) -> list[str]:
    """The columns of a table that may be labels."""
    try:
        if path.suffix.lower() == ".csv":
            with pa.csv.open_csv(path) as reader:
                return list(reader.schema.names)
        file = path if path.is_file() else next(iter(sorted(path.rglob("*.parquet"))), None)
        if file is None:
            raise InvalidInput(
                f"the folder {place} holds no Parquet files, and no folders of images (one for each class)"
            )
        schema = pa.parquet.read_schema(file)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{place} cannot be read: {error}") from None
    return [f.name for f in schema if not (pa.types.is_struct(f.type) or pa.types.is_binary(f.type))] or schema.names


def _guessed(names: Sequence[str], usual: Sequence[str], given: str | None, what: str) -> tuple[str, list[str]]:
    """The name that is given, or a usual one, or the last."""
    if given is not None:
        return given, []
    lower = {name.lower(): name for name in reversed(names)}
    for name in usual:
        if name in lower:
            return lower[name], []
    return names[-1], [f"the label is taken to be the last {what}, {names[-1]!r}: --label names another"]


def _arrays(data: dict[str, Any], path: Path, label: str | None) -> tuple[dict[str, Any], list[str]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            shapes = {name: archive[name].shape for name in archive.files}
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{data['path']} is no NPZ archive that can be read: {error}") from None
    samples = [name for name, shape in shapes.items() if len(shape) > 1]
    if not samples:
        raise DataError(
            f"{data['path']} has no array of samples × features: write one with numpy.savez(path, x=…, y=…)"
        )
    lower = {name.lower(): name for name in samples}
    x = next((lower[name] for name in ARRAYS if name in lower), samples[0])
    labels = [name for name, shape in shapes.items() if shape == shapes[x][:1]]
    if not labels and label is None:
        raise DataError(f"{data['path']} has no array with a label for each of the {shapes[x][0]} samples of {x!r}")
    y, note = _guessed(labels, ARRAY_LABELS, label, "array of one number for each sample")
    return data | {"x": x, "y": y}, note


def _read(data: dict[str, Any]) -> Samples:
    """The samples, with words and few whole numbers as classes, and other numbers as numbers to predict."""
    parsed = TypeAdapter[Any](Data).validate_python(data)
    try:
        samples = read_samples(parsed, regression=True)
    except DataError:  # words, or a fault that the second reading names
        return read_samples(parsed)
    return read_samples(parsed) if _are_classes(samples.y) else samples


def _are_classes(y: NDArray[Any]) -> bool:
    """Whether numbers number classes: whole, few, and not far apart."""
    values = np.unique(y)
    few = len(values) <= max(20, len(y) // 50) and len(values) < len(y)
    return bool(
        (values == np.floor(values)).all()
        and few
        and (len(values) == 2 or values[0] >= 0)
        and values[-1] <= 10 * len(values)
    )


def _columns(data: dict[str, Any]) -> list[str]:
    """The feature columns of a table, in the order of the samples' features."""
    path = Path(data["path"]).expanduser()
    if data["source"] == "csv":
        return [name for name in _names(path, data["path"]) if name != data["label"]]
    file = path if path.is_file() else next(iter(sorted(path.rglob("*.parquet"))))
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    schema = pa.parquet.read_schema(file)
    return [f.name for f in schema if any(is_kind(f.type) for is_kind in numeric) and f.name != data["label"]]


def _counting(x: NDArray[Any], data: dict[str, Any]) -> str | None:
    """The column of a table that numbers its rows; None if there is none, or it is the only one."""
    if x.ndim != 2 or data["source"] not in ("csv", "parquet") or not 20 <= len(x) < 2**24 or x.shape[1] < 2:
        return None
    counts = np.flatnonzero((np.diff(x, axis=0) == 1).all(axis=0))
    return _columns(data)[int(counts[0])] if len(counts) else None


def _labels_notes(samples: Samples) -> list[str]:
    y = samples.y
    if samples.n_classes:
        empty = samples.n_classes - len(np.unique(y))
        return (
            [f"{empty} of the {samples.n_classes} classes have no sample: the labels run to {y.max()}"] if empty else []
        )
    mean, spread = float(y.mean()), float(y.std())
    if 0.1 <= spread <= 10 and abs(mean) <= 3 * spread:
        return []
    return [
        f"the numbers to predict have a mean of {mean:.3g} and a standard deviation of {spread:.3g}: "
        "with the mean taken off and divided by the deviation they are easier to learn"
    ]
