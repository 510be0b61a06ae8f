"""Devices: which there are, what they are called, how much fits, and what to do when it does not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from hpsearch.errors import OutOfMemory

Job = TypeVar("Job")

GPU_SHARE = 0.8
"""Of a GPU's free memory that a pack may plan for: the allocator leaves gaps, and kernels want room of their own."""

CPU_SHARE = 0.5
"""Of the machine's free memory, all its workers together."""


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's ``mallopt``."""


def prepare_process(threads: int) -> None:
    """Set torch and the allocator up for training on the CPU, in this whole process.

    Freed memory is kept (up to 2 GiB at the end of the heap) in place of being handed back and faulted in anew, zeroed,
    at every step: 10 % of the time of a small CNN. Only glibc does otherwise; elsewhere nothing changes.

    Args:
        threads: that torch may use, ≥ 1.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # the velocity of a dead unit fades into numbers that take 20 times as long
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)


def devices() -> list[str]:
    """What ``--devices auto`` stands for: every CUDA GPU, else Apple's GPU, else the CPU; as torch names them."""
    if torch.cuda.is_available():
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return ["mps"]
    return ["cpu"]


def device_name(device: str) -> str:
    """What hardware a torch device is, as its maker calls it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            return f"{device} {found[1]}"
    return f"{device} {platform.machine()} {platform.processor()}"


def memory_budget(device: str, n_workers: int = 1) -> int:
    """Bytes that a pack may take on a device that ``n_workers`` processes share, by what is free now."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(GPU_SHARE * free) // n_workers
    if device.startswith("mps"):
        return int(GPU_SHARE * torch.mps.recommended_max_memory()) // n_workers
    return int(CPU_SHARE * _free_memory()) // n_workers


def _free_memory() -> int:
    with contextlib.suppress(OSError):
        if found := re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8")):
            return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def synchronize(device: str) -> None:
    """Wait until a device has done all it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


@contextlib.contextmanager
def memory_errors(n_members: int, device: str) -> Iterator[None]:
    """Raise OutOfMemory for torch's and Python's several ways to say so."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(n_members, device) from error
    except RuntimeError as error:  # of the CPU's allocator ("can't allocate memory") and of MPS
        if not re.search("out of memory|can't allocate memory", str(error)):
            raise
        raise OutOfMemory(n_members, device) from error


def in_halves(jobs: Sequence[Job], train: Callable[[list[Job]], None]) -> int:
    """Call ``train`` with all jobs, and where that raises OutOfMemory with each half of them, and so on.

    ``train`` may be called anew with jobs that it had begun. One job that does not fit alone raises OutOfMemory, and
    those after it are not begun.

    Returns:
        The widest group that fitted; 0 without jobs.
    """
    waiting = [list(jobs)] if jobs else []
    widest = 0
    while waiting:
        group = waiting.pop(0)
        try:
            train(group)
        except OutOfMemory:
            if len(group) == 1:
                raise
            half = (len(group) + 1) // 2
            waiting[:0] = [group[:half], group[half:]]
        else:
            widest = max(widest, len(group))
            continue
        # Out of the except clause, whose traceback holds the pack's tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return widest
