"""Optimisers over stacked parameters, with one value of every hyperparameter per member.

A step is ``begin``, then a backward pass of the loss gradient times ``scale``, then ``apply``. ``begin`` sets what the
backward pass adds to, so that an optimiser whose step is linear in the gradient needs no gradient buffer.
"""

from __future__ import annotations

import torch

from hpsearch.training.layers import Parameter

LARGE = 32_768
"""From so many numbers per member on, a parameter is updated member by member, each in the core's second-level cache;
for smaller ones the calls would cost more than they save."""


class Sgd:
    """v ← momentum · v − lr · g, w ← w + v, with g the gradient of the mean loss plus l2 · w (cs231n, "SGD+Momentum").

    The velocity starts at 0 and lives in ``Parameter.grad``.

    Args:
        parameters: stacked parameters (K, …).
        lr: (K,) learning rates ≥ 0; may be set anew between steps.
        momentum: (K,) in [0, 1).
        l2: (K,) ≥ 0, applied to penalised parameters.
    """

    def __init__(
        self, parameters: list[Parameter], *, lr: torch.Tensor, momentum: torch.Tensor, l2: torch.Tensor
    ) -> None:
        self._parameters = parameters
        self._momentum = momentum
        self._l2 = l2
        self.lr = lr

    @property
    def lr(self) -> torch.Tensor:
        """(K,) learning rates."""
        return self._lr

    @lr.setter
    def lr(self, lr: torch.Tensor) -> None:
        self._lr = lr
        self._shrink = -lr * self._l2
        self._momenta, self._shrinks = self._momentum.tolist(), self._shrink.tolist()
        self.scale = -lr.view(-1, 1, 1)

    def begin(self) -> None:
        """Set v ← momentum · v − lr · l2 · w, to which the backward pass adds −lr · g."""
        for p in self._parameters:
            ndim = p.value.dim() - 1
            if p.penalised and p.value[0].numel() >= LARGE:
                for v, w, momentum, shrink in zip(p.grad, p.value, self._momenta, self._shrinks, strict=True):
                    v.mul_(momentum).add_(w, alpha=shrink)
                continue
            p.grad.mul_(self._momentum.view(-1, *[1] * ndim))
            if p.penalised:
                p.grad.addcmul_(p.value, self._shrink.view(-1, *[1] * ndim))

    def apply(self) -> None:
        """Set w ← w + v."""
        for p in self._parameters:
            p.value.add_(p.grad)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``; the parameters are compacted by their owner."""
        self._momentum = self._momentum.index_select(0, rows)
        self._l2 = self._l2.index_select(0, rows)
        self.lr = self._lr.index_select(0, rows)
