"""Dropout of K models, each with a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hpsearch.training.layers.base import Layer, Pass, per_member
from hpsearch.training.streams import Purpose, numpy_stream


class Dropout(Layer):
    """Sets a share of the activations to zero in training and scales up the others (cs231n, "inverted dropout").

    Whether an activation is dropped is a function of its member's seed, the epoch, the layer, the minibatch's place in
    the epoch and its own place, whatever the pack and the device: a hash in place of a generator, so that all masks of
    a pack are one computation, which on a GPU K generators would make K.

    Args:
        rates: (K,) in [0, 1), on the device.
        seeds: of the members, ≥ 0.
        layer: number of this layer among those of its model that drop.
    """

    def __init__(self, rates: torch.Tensor, seeds: Sequence[int], *, layer: int) -> None:
        super().__init__()
        rates = rates.clamp(max=1 - 2**-24)  # the largest float32 below 1, which a rate may be rounded up to
        # Of hashes: rate · 2³², from the least int32 on. In double precision, which not every device has.
        self._limits = (rates.cpu().double() * 2**32 - 2**31).to(torch.int32).to(rates.device)
        self._scales = 1 / (1 - rates)
        self._active = bool(rates.any())
        self._seeds = np.array(seeds, dtype=object)
        self._layer = layer
        self._mask: torch.Tensor | None = None
        self._keys = torch.zeros_like(self._limits)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Restart every member's stream from (seed, epoch)."""
        self._n_passes = 0
        if not self._active:
            return
        streams = [numpy_stream(seed, Purpose.DROPOUT, epoch, self._layer) for seed in self._seeds]
        keys = [int(stream.integers(-(2**31), 2**31)) for stream in streams]
        self._keys = torch.tensor(keys, dtype=torch.int32, device=self._limits.device)

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """Activations of either layout → the same shape; the inputs themselves if nothing is dropped."""
        if kind is not Pass.TRAINING or not self._active:
            return inputs
        self._mask = self._masks(inputs)
        return inputs * self._mask

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """Zero where the activation was dropped."""
        return gradient if self._mask is None else gradient * self._mask

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``."""
        self._seeds = self._seeds[rows.cpu().numpy()]
        self._limits = self._limits.index_select(0, rows)
        self._scales = self._scales.index_select(0, rows)
        self._keys = self._keys.index_select(0, rows)

    def _masks(self, inputs: torch.Tensor) -> torch.Tensor:
        """0 or 1 / (1 − rate) in the shape of the inputs."""
        shape = list(inputs.shape)
        shape[0 if inputs.dim() == 3 else 1] = 1  # the axis of members
        places = torch.arange(inputs.numel() // len(self._keys), dtype=torch.int32, device=inputs.device)
        keys = hashed(self._keys + self._n_passes)
        self._n_passes += 1
        drawn = hashed(hashed(places).view(shape) ^ per_member(keys, inputs))
        kept = (drawn >= per_member(self._limits, inputs)).to(inputs.dtype)
        return kept.mul_(per_member(self._scales, inputs))


def hashed(numbers: torch.Tensor) -> torch.Tensor:
    """int32 numbers to int32 numbers, one to one, that look random: C. Wellons' ``lowbias32`` (2018).

    Source: https://nullprogram.com/blog/2018/07/31/.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        numbers = (numbers ^ _shifted(numbers, shift)) * factor
    return numbers ^ _shifted(numbers, 16)


def _shifted(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    return (numbers >> bits) & ((1 << (32 - bits)) - 1)  # of the bits alone: torch's own shift copies the sign
