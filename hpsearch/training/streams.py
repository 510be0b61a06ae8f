"""Random streams: a function of a seed and a purpose, the same on every machine, device and pack."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a stream is for; streams of one seed and different purposes are independent."""

    SPLIT = 0
    ORDER = 1
    INITIALISATION = 2
    DROPOUT = 3
    AUGMENTATION = 10
    FOLDS = 11
    TEST = 12
    PREFLIGHT = 20


def numpy_stream(seed: int, purpose: Purpose, *path: int) -> np.random.Generator:
    """A NumPy generator for ``seed`` (≥ 0), ``purpose`` and further numbers (≥ 0), such as the epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, *path]))


def torch_stream(seed: int, purpose: Purpose, *path: int) -> torch.Generator:
    """As :func:`numpy_stream`, a torch generator on the CPU, whatever device the numbers go to."""
    state = np.random.SeedSequence([seed, purpose, *path]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
