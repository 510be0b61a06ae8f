"""How many trials a pack of this machine should have: measured, and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from hpsearch.errors import OutOfMemory
from hpsearch.objective import TrainObjective
from hpsearch.objective.models import CnnModel, Model, ResnetModel
from hpsearch.training.data import Dataset
from hpsearch.training.devices import device_name, synchronize
from hpsearch.training.pack import Member, Pack, architecture_key

SECONDS = 2.0
"""That a search takes at most, by what the widths tried so far foretell; the width 1 is always tried."""

BLOCK_SECONDS = 0.03
"""Of one timing; the fastest of :data:`BLOCKS` counts, for what else the machine does only ever adds."""

BLOCKS = 3

GAIN = 1.03
"""A wider pack must be faster by this factor: narrower ones report earlier and lease less at a time."""

WIDEST = 1024

COPIES = 6
"""Tensors of the size of all parameters (weights, gradients, two moments and room to work in), and of all activations
(each layer's output, its gradient, columns of a convolution): a generous count, for it only sets the widest try."""


class Rehearsable(Protocol):
    """A pack whose steps can be timed."""

    def rehearse(self, n_steps: int) -> None:
        """Train ``n_steps`` minibatches without counting them. Raises OutOfMemory."""
        ...


def find_width(objective: TrainObjective, dataset: Dataset, *, device: str, memory_budget: int, epochs: int = 1) -> int:
    """The width at which a pack of this architecture makes the most member-steps per second.

    See :func:`fastest_width`; the answer is kept by architecture, batch size, optimiser, shape of the data, device,
    threads and version of torch.

    Args:
        objective: of any trial; its numbers per member do not matter.
        dataset: loaded for it, on ``device``.
        device: a torch device.
        memory_budget: bytes that the members of a pack may take, beside the data.
        epochs: of the trials.
    """

    def make(width: int) -> Pack:
        members = [Member(objective, seed) for seed in range(width)]
        return Pack(members, dataset, data_seed=0, epochs=epochs, device=device)

    batch_size = min(objective.batch_size, dataset.n_train)
    key = architecture_key(objective), dataset.shape, dataset.n_classes, batch_size
    per_member = bytes_per_member(objective, dataset.shape, dataset.n_classes)
    return fastest_width(make, key, device=device, widest=memory_budget // per_member)


def fastest_width(make: Callable[[int], Rehearsable], key: Hashable, *, device: str, widest: int) -> int:
    """The width of the pack that makes the most member-steps per second.

    Widths 1, 2, 4, … are timed until two in a row are no faster than the one before, the widest is reached or about
    two seconds are over; the narrowest within 3 % of the fastest is taken. So it is never a width slower than one trial
    at a time. What was measured is kept under ``$XDG_CACHE_HOME/hpsearch/widths`` (``~/.cache``) by ``key``, device,
    threads, version of torch and ``widest``. A cache that cannot be read or written is no error.

    Args:
        make: a new pack of so many members.
        key: of all else that decides about speed; equal keys have equal representations in every process.
        device: a torch device.
        widest: how many members fit into memory; the width 1 is tried all the same.
    """
    widest = 2 ** (min(max(widest, 1), WIDEST).bit_length() - 1)
    path = _cache_path(key, device, widest)
    rates = _load(path)
    if rates is None:
        rates = _measure(make, device=device, widest=widest)
        with contextlib.suppress(OSError):
            _save(path, rates)
    return choose(rates)


def choose(rates: dict[int, float]) -> int:
    """The narrowest width whose rate is within 3 % of the highest; rates are member-steps per second by width."""
    highest = max(rates.values())
    return min(width for width, rate in rates.items() if rate * GAIN >= highest and rate >= rates[min(rates)])


def bytes_per_member(objective: TrainObjective, shape: Sequence[int], n_outputs: int) -> int:
    """An estimate from above of the memory that one more member takes.

    Args:
        objective: its model and batch size count.
        shape: of one sample: (features,) or (height, width, channels).
        n_outputs: number of scores.
    """
    weights, activations = _sizes(objective.model, shape, n_outputs)
    return 4 * COPIES * (weights + activations * objective.batch_size)


def _sizes(model: Model, shape: Sequence[int], n_outputs: int) -> tuple[int, int]:
    """Numbers of weights, and of activations for one sample."""
    pieces = model.pieces if model.kind != "linear" and model.activation == "maxout" else 1
    weights = activations = 0
    features = math.prod(shape)
    if isinstance(model, CnnModel | ResnetModel):
        height, width, channels = shape if len(shape) == 3 else (1, features, 1)
        kernel, stride, depth = (3, 2, 2 * model.blocks) if model.kind == "resnet" else (model.kernel, model.pool, 1)
        for i, after in enumerate(model.channels):
            if model.kind == "resnet" and i > 0:
                height, width = -(-height // stride), -(-width // stride)
            weights += kernel**2 * after * (channels + (depth - 1) * after) * pieces
            activations += height * width * (kernel**2 * channels + depth * (1 + kernel**2) * after * pieces)
            channels = after
            if model.kind == "cnn":
                height, width = max(1, height // stride), max(1, width // stride)
        features = channels if model.kind == "resnet" else height * width * channels
    hidden = [] if isinstance(model, ResnetModel) or model.kind == "linear" else model.hidden
    for after in (*(n * pieces for n in hidden), n_outputs):
        weights += features * after
        activations += after
        features = after // pieces
    return weights, activations


def _measure(make: Callable[[int], Rehearsable], *, device: str, widest: int) -> dict[int, float]:
    """Member-steps per second by width."""
    rates: dict[int, float] = {}
    end = time.perf_counter() + SECONDS
    width, slower, before = 1, 0, 0.0
    while width <= widest and slower < 2:
        started = time.perf_counter()
        try:
            rates[width] = width / _step_seconds(make(width), device=device, end=end)
        except OutOfMemory:
            if width == 1:
                raise
            break
        # By the one before: the first step from one module to a vmap of two may cost more than it gains.
        slower = 0 if rates[width] >= GAIN * before else slower + 1
        before = rates[width]
        width *= 2
        if time.perf_counter() + 2 * (time.perf_counter() - started) > end:
            break
    return rates


def _step_seconds(pack: Rehearsable, *, device: str, end: float) -> float:
    """Of the fastest block, after a step that does not count; past ``end``, of one step."""
    pack.rehearse(1)
    fastest = _timed(pack, 1, device)
    n_steps = max(1, int(BLOCK_SECONDS / fastest))
    for _ in range(BLOCKS):
        if time.perf_counter() > end:
            break
        fastest = min(fastest, _timed(pack, n_steps, device) / n_steps)
    return fastest


def _timed(pack: Rehearsable, n_steps: int, device: str) -> float:
    started = time.perf_counter()
    pack.rehearse(n_steps)
    synchronize(device)
    return time.perf_counter() - started


def _cache_path(key: Hashable, device: str, widest: int) -> Path:
    # The number is that of this format.
    whole = (2, key, device_name(device), torch.get_num_threads(), str(torch.__version__), widest)
    name = hashlib.sha256(repr(whole).encode()).hexdigest()[:32]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "hpsearch", "widths", f"{name}.json")


def _load(path: Path) -> dict[int, float] | None:
    """Rates by width, or None where the file is absent or damaged."""
    try:
        rates = {int(width): float(rate) for width, rate in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    sound = 1 in rates and all(1 <= w <= WIDEST and math.isfinite(r) and r > 0 for w, r in rates.items())
    return rates if sound else None


def _save(path: Path, rates: dict[int, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        try:
            json.dump(rates, file)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
