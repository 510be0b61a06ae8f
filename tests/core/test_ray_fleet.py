"""How many workers a Ray cluster is to have, what fits on its nodes, and what a node must have."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpsearch.errors import ClusterUnreachable, InvalidInput

pytest.importorskip("ray", reason="Ray is not installed: pip install 'hpsearch[ray]'")

from hpsearch.worker.ray.actor import missing_code
from hpsearch.worker.ray.cluster import Share, connected
from hpsearch.worker.ray.fleet import Range, n_wanted


@pytest.mark.parametrize(
    ("n", "starting", "waiting", "low", "high", "wanted"),
    [
        (0, 0, 0, 0, 4, 0),
        (0, 0, 0, 2, 4, 2),  # the least number, also without work
        (0, 0, 3, 0, 4, 3),
        (0, 0, 100, 0, 4, 4),
        (2, 2, 2, 0, 4, 2),  # those that start will take what waits
        (2, 1, 2, 0, 4, 3),
        (4, 0, 0, 0, 4, 4),  # what is idle ends by itself
        (4, 0, 9, 0, 2, 4),  # the room became less: none is ended that works
    ],
)
def test_one_more_for_what_waits(n: int, starting: int, waiting: int, low: int, high: int, wanted: int) -> None:
    assert n_wanted(n, starting=starting, waiting=waiting, low=low, high=high) == wanted


@pytest.mark.parametrize(
    ("cpus", "gpus", "there", "n"),
    [
        (1, 0, {"CPU": 4.0}, 4),
        (3, 0, {"CPU": 8.0}, 2),
        (0.1, 0, {"CPU": 1.0}, 10),
        (1, 1, {"CPU": 8.0}, 0),
        (1, 1, {"CPU": 8.0, "GPU": 2.0}, 2),
        (1, 0.5, {"CPU": 8.0, "GPU": 2.0}, 4),
        (1, 0.4, {"CPU": 8.0, "GPU": 2.0}, 4),  # two on each GPU; the fifth of both is of no use
        (4, 0.25, {"CPU": 8.0, "GPU": 1.0}, 2),
    ],
)
def test_what_fits_on_a_node(cpus: float, gpus: float, there: dict[str, float], n: int) -> None:
    assert Share(cpus, gpus).fits(there) == n


def test_shares_and_ranges_that_cannot_be() -> None:
    for cpus in (0.0, -1.0, 1.5, float("inf"), float("nan")):
        with pytest.raises(InvalidInput, match=r"--cpus .*: give a whole number, or a fraction"):
            Share(cpus)
    for gpus in (-0.5, 2.0, float("nan")):
        with pytest.raises(InvalidInput, match=r"--gpus .*: a worker uses one GPU"):
            Share(1.0, gpus)
    for low, high in ((2, 1), (0, 0)):
        with pytest.raises(InvalidInput, match=f"--min {low} --max {high}"):
            Range(low, high)


@pytest.mark.parametrize("address", ["ray", "10.0.0.1:6379", "http://head", "ray://", "ray://head", "ray://head:x"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidInput, match=f"--on {address}: give ray://HOST:PORT"), connected(address):
        pass


def test_a_head_that_is_not_there() -> None:
    sentence = r"ray://127.0.0.1:1 cannot be reached .*ray start --head"
    with pytest.raises(ClusterUnreachable, match=sentence), connected("ray://127.0.0.1:1"):
        pass


def test_code_that_is_not_on_a_node(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "train.sh").write_text("#!/bin/sh\n")
    (tmp_path / "train.sh").chmod(0o755)
    folders = [str(tmp_path)]
    there = ["mine:objective", "mine.part:*", "json:loads", "sys:exit", "./train.sh", "sh", "*", "none*:x", "./none*"]
    assert missing_code(there, folders) is None
    for absent in ("yours:objective", "./other.sh", "no-such-program"):
        assert missing_code([*there, absent], folders) == absent
    assert missing_code(["mine:objective"], []) == "mine:objective"
