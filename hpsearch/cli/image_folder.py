"""A folder of images, one folder for each class, as one Parquet file: what workers read, and copy, at once."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from PIL import Image, UnidentifiedImageError

from hpsearch.errors import DataError, InvalidInput

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
IN_A_GROUP = 1000
"""Images that are in memory at a time."""
SCHEMA = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string())])
"""As Hugging Face's datasets lay images out."""


def images_of(folder: Path) -> list[tuple[str, Path]]:
    """(class, image) of a folder with a folder of images for each class, sorted; empty if it is no such folder."""
    return [
        (inner.name, file)
        for inner in sorted(path for path in folder.iterdir() if path.is_dir())
        for file in sorted(inner.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]


def write_parquet(folder: Path, images: list[tuple[str, Path]], target: Path) -> None:
    """Write images into one Parquet file with the columns ``image`` and ``label``; whole, or not at all.

    Raises:
        InvalidInput: the file is there.
        DataError: there is one class only, or the images are not all of one size.
    """
    if target.exists():
        raise InvalidInput(f"{target} is there already: look at it with hpsearch init {target}, or remove it first")
    if len({label for label, _ in images}) < 2:
        raise DataError(f"{folder} has images in one folder alone, {images[0][0]!r}: give one folder for each class")
    _check_sizes(images)
    unfinished = target.with_name(f"{target.name}.part")
    try:
        with pa.parquet.ParquetWriter(unfinished, SCHEMA) as writer:
            for start in range(0, len(images), IN_A_GROUP):
                writer.write_table(_table(images[start : start + IN_A_GROUP]))
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_sizes(images: list[tuple[str, Path]]) -> None:
    first = images[0][1]
    sizes = {}
    for _, file in images:
        try:
            with Image.open(file) as image:
                sizes[file] = image.size
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{file} is no image that can be read ({error}): repair or remove it") from None
        if sizes[file] != sizes[first]:
            shown = " and ".join(f"{each} is {sizes[each][0]} × {sizes[each][1]}" for each in (first, file))
            raise DataError(f"the images differ in size ({shown} pixels): make them of one size first")


def _table(images: list[tuple[str, Path]]) -> pa.Table:
    cells = [{"bytes": file.read_bytes(), "path": file.name} for _, file in images]
    return pa.table({"image": cells, "label": [label for label, _ in images]}, schema=SCHEMA)
