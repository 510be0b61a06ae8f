"""Encoded images to arrays, once per machine and user."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpsearch.errors import DataError

GREY = ("1", "L", "LA", "La")
COLOUR = ("CMYK", "HSV", "LAB", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr")


def decode_images(cells: Any, *, where: str) -> NDArray[np.uint8]:
    """All images of a column as (n, height, width, channels), one channel if all are grey, else three.

    One thread: Pillow holds the interpreter's lock for most of the time that a small image takes (50,000 of 32 × 32:
    5 s with one thread, 6 s with two), hence :func:`cached`.

    Args:
        cells: pyarrow array of encoded images (JPEG, PNG, whatever Pillow reads), n ≥ 1.
        where: names the column in errors.

    Raises:
        DataError: an image is missing, cannot be decoded, or is not of the size of the first.
    """
    images: NDArray[np.uint8] | None = None
    for row, cell in enumerate(_bytes(cells)):
        try:
            if cell is None:
                raise ValueError("it is missing")
            with Image.open(io.BytesIO(cell)) as image:
                if images is None:
                    images = np.empty((len(cells), image.height, image.width, 1), dtype=np.uint8)
                _check(image, images.shape[1:3])
                if image.mode not in GREY and images.shape[3] == 1:
                    images = np.repeat(images, 3, axis=3)
                pixels = np.asarray(image.convert("L" if images.shape[3] == 1 else "RGB"))
                images[row] = pixels.reshape(images.shape[1:])
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise DataError(
                f"{where} holds no usable image in sample {row} (from 0): {error or type(error).__name__}; "
                "repair or remove it"
            ) from None
    assert images is not None
    return images


def _bytes(cells: Any) -> Iterable[bytes | None]:
    return (cell.as_py() for cell in cells)


def _check(image: Image.Image, size: Sequence[int]) -> None:
    if (image.height, image.width) != tuple(size):
        raise ValueError(
            f"it is {image.width} × {image.height} pixels and sample 0 is {size[1]} × {size[0]}, "
            "but all must be of one size"
        )
    if image.mode not in (*GREY, *COLOUR):
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}, not of 8 bits")


def cached(files: Sequence[Path], column: str, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What ``decode`` gives, kept as an array file under ``$XDG_CACHE_HOME/hpsearch`` (``~/.cache/hpsearch``).

    The key is column, paths, sizes and times of the files. Returned memory-mapped, so that all workers of a machine
    share one copy. Written at once or not at all: workers that start together each decode, and either's file
    is right. A cache that cannot be written is no error.
    """
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((1, column, stats)).encode()).hexdigest()[:32]
    path = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hpsearch", f"{key}.npy")
    with contextlib.suppress(OSError, ValueError, EOFError):  # absent, or damaged
        return _load(path)
    images = decode()
    with contextlib.suppress(OSError):
        _save(images, path)
    return images


def _load(path: Path) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return images


def _save(images: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            np.save(file, images)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
