"""Devices and what to do when a pack does not fit."""

import pytest
import torch

from hpsearch.errors import OutOfMemory
from hpsearch.training.devices import device_name, devices, in_halves, memory_budget, memory_errors


def test_there_is_always_a_device_that_works() -> None:
    found = devices()
    assert found
    for device in found:
        assert torch.zeros(2, device=device).sum().item() == 0
        assert device_name(device)
        assert memory_budget(device) >= memory_budget(device, n_workers=8) > 0


def test_every_way_to_run_out_of_memory_is_one_error() -> None:
    ways = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        MemoryError(),
    ]
    for way in ways:
        with pytest.raises(OutOfMemory, match="a pack of 8 trials does not fit"), memory_errors(8, "cpu"):
            raise way
    with pytest.raises(OutOfMemory, match="one trial does not fit"), memory_errors(1, "cpu"):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(8, "cpu"):
        raise RuntimeError("shapes do not match")


def test_halves_until_it_fits() -> None:
    trained: list[list[int]] = []

    def train(jobs: list[int]) -> None:
        if len(jobs) > 3:
            raise OutOfMemory(len(jobs), "cpu")
        trained.append(jobs)

    assert in_halves(list(range(9)), train) == 3
    assert trained == [[0, 1, 2], [3, 4], [5, 6], [7, 8]]
    assert in_halves(list[int](), train) == 0


def test_one_that_does_not_fit_alone_says_so() -> None:
    def train(jobs: list[int]) -> None:
        raise OutOfMemory(len(jobs), "cpu")

    with pytest.raises(OutOfMemory, match="one trial does not fit into the memory of cpu"):
        in_halves([1, 2], train)
