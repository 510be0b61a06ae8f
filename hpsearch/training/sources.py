"""Where samples come from: one function per ``data.source``, all giving the same checked :class:`Samples`."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpsearch.document import unknown
from hpsearch.errors import DataError
from hpsearch.objective.data import CsvData, Data, DigitsData, NpzData, ParquetData
from hpsearch.training.labels import encode_labels
from hpsearch.training.samples import Samples, existing, finite


def read_samples(data: Data, *, regression: bool = False) -> Samples:
    """Read and check a source; for a ``regression`` its labels are numbers.

    Raises:
        DataError: in one sentence, what is wrong, where, and what to do.
    """
    match data:
        case DigitsData():
            return _digits(regression=regression)
        case NpzData():
            return _npz(data, regression=regression)
        case CsvData() | ParquetData():
            from hpsearch.training.tables import read_csv, read_parquet  # heavy: pyarrow

            if isinstance(data, CsvData):
                return read_csv(data, regression=regression)
            return read_parquet(data, regression=regression)


def _digits(*, regression: bool) -> Samples:
    from sklearn.datasets import load_digits  # heavy: scikit-learn

    digits = load_digits()
    labels = encode_labels(digits.target, where="digits", regression=regression)
    return Samples(digits.images.astype(np.float32)[..., None], *labels)


def _npz(data: NpzData, *, regression: bool) -> Samples:
    path = existing(data.path)
    not_npz = f"{data.path} is not an NPZ archive: write one with numpy.savez(path, x=…, y=…)"
    try:
        with path.open("rb") as file:  # not left to NumPy, which forgets to close what is no archive
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(not_npz)
            x, y = (_member(archive, name, data) for name in (data.x, data.y))
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{not_npz} ({error})") from None
    except OSError as error:
        raise DataError(f"{data.path} cannot be read: {error.strerror or error}") from None
    if x.ndim < 2 or x.size == 0:
        raise DataError(f"the array {data.x!r} in {data.path} has the shape {x.shape}: it must be samples × features")
    if y.shape != x.shape[:1]:
        raise DataError(
            f"the array {data.y!r} in {data.path} has the shape {y.shape}: it must hold one label for each of the "
            f"{len(x)} samples of {data.x!r}"
        )
    labels = encode_labels(y, where=f"the array {data.y!r} in {data.path}", regression=regression)
    return Samples(_numbers(x, where=f"the array {data.x!r} in {data.path}"), *labels)


def _member(archive: Any, name: str, data: NpzData) -> NDArray[Any]:
    if name not in archive.files:
        raise DataError(f"{data.path}: {unknown(name, list(archive.files), what='array')}")
    try:
        member: NDArray[Any] = archive[name]
    except ValueError:
        raise DataError(
            f"the array {name!r} in {data.path} holds Python objects, which are never loaded: save it as numbers"
        ) from None
    return member


def _numbers(x: NDArray[Any], where: str) -> NDArray[Any]:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has the type {x.dtype}: it must hold real numbers")
    return finite(x, where)
