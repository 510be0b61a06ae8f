"""Residual blocks of K models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from hpsearch.training.layers.base import Layer, Pass


class Residual(Layer):
    """The sum of two paths over the same inputs (He et al. 2015b).

    Args:
        main: layers of which the first leaves its inputs and the last its gradient as they are (a convolution, a
            batch norm).
        shortcut: likewise; none passes the inputs on.
    """

    def __init__(self, main: Sequence[Layer], shortcut: Sequence[Layer]) -> None:
        layers = [*main, *shortcut]
        super().__init__([p for layer in layers for p in layer.parameters], [b for e in layers for b in e.buffers])
        self._main = main
        self._shortcut = shortcut

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """(batch, K, channels, height, width) → what both paths make of it."""
        return run(self._main, inputs, kind).add_(run(self._shortcut, inputs, kind))

    def backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """The sum of what both paths pass back."""
        main, shortcut = run_back(self._main, gradient), run_back(self._shortcut, gradient)
        assert main is not None
        assert shortcut is not None
        return main.add_(shortcut)

    def place(self, path: str) -> None:
        """``path.main.0`` … and ``path.shortcut.0`` …"""
        self.name = path
        for name, layers in (("main", self._main), ("shortcut", self._shortcut)):
            for i, layer in enumerate(layers):
                layer.place(f"{path}.{name}.{i}")

    def begin_epoch(self, epoch: int) -> None:
        """Of every layer."""
        for layer in self.walk():
            layer.begin_epoch(epoch)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``."""
        for layer in self.walk():
            layer.keep(rows)

    def walk(self) -> Iterator[Layer]:
        """The main path, then the shortcut."""
        for layer in (*self._main, *self._shortcut):
            yield from layer.walk()


def run(layers: Sequence[Layer], inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
    """The layers one after the other."""
    for layer in layers:
        inputs = layer.forward(inputs, kind)
    return inputs


def run_back(layers: Sequence[Layer], gradient: torch.Tensor) -> torch.Tensor | None:
    """Their backward passes, from the last to the first."""
    inner: torch.Tensor | None = gradient
    for layer in reversed(layers):
        assert inner is not None  # only the first layer of a model returns None
        inner = layer.backward(inner)
    return inner
