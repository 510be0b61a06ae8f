"""Workers read data of studies from their own folder alone; and pickles never."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpsearch.errors import DataError
from hpsearch.objective.data import CsvData, Data, NpzData, ParquetData
from hpsearch.training.samples import confined
from hpsearch.training.sources import read_samples

ROWS = {"a": [0.0, 1.0, 2.0, 3.0], "y": [0, 1, 0, 1]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with data inside, and the same data outside."""
    root = tmp_path / "root"
    for folder in (root, tmp_path / "outside"):
        folder.mkdir()
        np.savez(folder / "d.npz", x=np.array(ROWS["a"])[:, None], y=np.array(ROWS["y"]))
        (folder / "d.csv").write_text("a,y\n0,0\n1,1\n2,0\n3,1\n")
        pq.write_table(pa.table(ROWS), folder / "d.parquet")
    return root


def data(path: Path) -> Data:
    match path.suffix:
        case ".npz":
            return NpzData(source="npz", path=str(path))
        case ".csv":
            return CsvData(source="csv", path=str(path), label="y")
    return ParquetData(source="parquet", path=str(path), label="y")


@pytest.mark.parametrize("name", ["d.npz", "d.csv", "d.parquet"])
def test_what_is_inside_is_read(root: Path, name: str) -> None:
    with confined(root):
        assert len(read_samples(data(root / name)).y) == 4


@pytest.mark.parametrize("name", ["d.npz", "d.csv", "d.parquet"])
def test_there_is_no_way_out(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = root.parent / "outside" / name
    link = root / f"link{outside.suffix}"
    link.symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(outside.parent))
    ways = [outside, Path("..", "outside", name), link, root / "folder" / name, Path("~") / name]
    for way in ways:
        with confined(root), pytest.raises(DataError, match=r"reads no data from elsewhere.*--data-root"):
            read_samples(data(way))
        assert len(read_samples(data(way)).y) == 4, "who is not confined reads it"
    missing = root.parent / "outside" / f"missing{outside.suffix}"
    with confined(root), pytest.raises(DataError, match="reads no data from elsewhere"):
        read_samples(data(missing))  # whether there is something is not told


def test_a_file_of_a_folder_may_not_be_a_link_out(root: Path) -> None:
    folder = root / "many"
    folder.mkdir()
    (folder / "train.parquet").symlink_to(root.parent / "outside" / "d.parquet")
    with confined(root), pytest.raises(DataError, match="reads no data from elsewhere"):
        read_samples(data(folder))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.array([[1.0], [2.0]]), y=np.array([object(), object()], dtype=object))
    with pytest.raises(DataError, match="holds Python objects, which are never loaded"):
        read_samples(NpzData(source="npz", path=str(path)))
