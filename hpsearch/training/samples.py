"""What every source gives, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpsearch.errors import DataError


@dataclass(frozen=True)
class Samples:
    """All samples of a source, before any split.

    Attributes:
        x: (n, …) uint8 for images (height, width, channels), else float32; finite.
        y: (n,) int64 in 0 … n_classes − 1, or float32 numbers to predict.
        n_classes: ≥ 2, or 0 where ``y`` are numbers to predict.
        names: of the classes, where the source names them.
        test: samples that the source itself sets apart for the winner.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    n_classes: int
    names: tuple[str, ...] = ()
    test: Samples | None = None


_root: ContextVar[Path | None] = ContextVar("data_root", default=None)


@contextmanager
def confined(root: Path | None) -> Iterator[None]:
    """Inside, data are read from this folder alone, links followed; None: from anywhere."""
    token = _root.set(None if root is None else root.resolve())
    try:
        yield
    finally:
        _root.reset(token)


def existing(path: str) -> Path:
    """The path, if there is something at it; raises DataError if not, or if it leads out of the worker's folder."""
    found = inside(Path(path).expanduser(), path)
    if not found.exists():
        raise DataError(f"there is no {path} (seen from {Path.cwd()}): give the path of the data as data.path")
    return found


def inside(found: Path, named: str) -> Path:
    """The path; raises DataError if it, or what it is a link to, is not in the folder of :func:`confined`."""
    root = _root.get()
    if root is not None and not found.resolve().is_relative_to(root):
        raise DataError(
            f"{named} is not in {root}, and this worker reads no data from elsewhere: put them there, "
            "or start the worker with --data-root"
        )
    return found


def finite(x: NDArray[Any], where: str) -> NDArray[np.float32]:
    """(n, …) as float32; raises DataError naming the first sample with a value that is not a finite float32."""
    with np.errstate(over="ignore"):
        floats = x.astype(np.float32)
    bad = ~np.isfinite(floats)
    if bad.any():
        sample, *feature = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        at = f", feature {', '.join(map(str, feature))}" if feature else ""
        raise DataError(
            f"{where} holds {x[(sample, *feature)]} in sample {sample}{at} (from 0): every value must be a finite "
            "32-bit number; remove such samples or fill them in"
        )
    return floats
