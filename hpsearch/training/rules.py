"""The step of each kind of optimiser, as a function of tensors that hold any number of members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hpsearch.objective.optimizers import Optimizer

Coefficients = dict[str, torch.Tensor]
Slots = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Rule:
    """One kind of optimiser.

    Attributes:
        slots: names of what it remembers per parameter, each of the parameter's shape, 0 at the start.
        constants: per member, from its settings.
        change: (gradient, slots, coefficients) → what is added to the weights; updates the slots in place and may
            overwrite the gradient. Coefficients broadcast against the gradient: the constants, and ``rate``.
        corrected: whether ``rate`` and ``root`` hold Adam's bias corrections.
    """

    slots: tuple[str, ...]
    constants: Callable[[Optimizer], dict[str, float]]
    change: Callable[[torch.Tensor, Slots, Coefficients], torch.Tensor]
    corrected: bool = False


def _sgd(gradient: torch.Tensor, slots: Slots, c: Coefficients) -> torch.Tensor:
    (velocity,) = slots
    return velocity.mul_(c["momentum"]).sub_(gradient.mul_(c["rate"]))


def _nesterov(gradient: torch.Tensor, slots: Slots, c: Coefficients) -> torch.Tensor:
    (velocity,) = slots
    velocity.mul_(c["momentum"]).add_(gradient)
    return gradient.addcmul_(velocity, c["momentum"]).mul_(-c["rate"])


def _adagrad(gradient: torch.Tensor, slots: Slots, c: Coefficients) -> torch.Tensor:
    (squares,) = slots
    squares.addcmul_(gradient, gradient)
    return gradient.div_(squares.sqrt().add_(c["epsilon"])).mul_(-c["rate"])


def _rmsprop(gradient: torch.Tensor, slots: Slots, c: Coefficients) -> torch.Tensor:
    (squares,) = slots
    squares.lerp_(gradient.square(), c["fresh"])
    return gradient.div_(squares.sqrt().add_(c["epsilon"])).mul_(-c["rate"])


def _adam(gradient: torch.Tensor, slots: Slots, c: Coefficients) -> torch.Tensor:
    mean, squares = slots
    mean.lerp_(gradient, c["fresh1"])
    squares.lerp_(gradient.square_(), c["fresh2"])
    return mean.div(squares.sqrt().div_(c["root"]).add_(c["epsilon"])).mul_(-c["rate"])


def _momentum_constants(o: Optimizer) -> dict[str, float]:
    return {"momentum": o.momentum}


def _adam_constants(o: Optimizer) -> dict[str, float]:
    return {"fresh1": 1 - o.beta1, "fresh2": 1 - o.beta2, "epsilon": o.epsilon}


RULES = {
    "sgd": Rule(("velocity",), _momentum_constants, _sgd),
    "nesterov": Rule(("velocity",), _momentum_constants, _nesterov),
    "adagrad": Rule(("squares",), lambda o: {"epsilon": o.epsilon}, _adagrad),
    "rmsprop": Rule(("squares",), lambda o: {"fresh": 1 - o.rho, "epsilon": o.epsilon}, _rmsprop),
    "adam": Rule(("mean", "squares"), _adam_constants, _adam, corrected=True),
}
"""With gradient g, rate r and the settings of :class:`hpsearch.objective.optimizers.Optimizer`, after zeros:

- ``sgd``: v ← momentum · v − r · g; w ← w + v (cs231n, lecture 6; for a constant rate as ``torch.optim.SGD``)
- ``nesterov``: v ← momentum · v + g; w ← w − r · (g + momentum · v) (``torch.optim.SGD(nesterov=True)``)
- ``adagrad``: s ← s + g²; w ← w − r · g / (√s + ε) (Duchi et al. 2011)
- ``rmsprop``: s ← ρ · s + (1 − ρ) · g²; w ← w − r · g / (√s + ε) (Hinton, "Neural Networks for ML", lecture 6e)
- ``adam``: m ← β₁ · m + (1 − β₁) · g; s ← β₂ · s + (1 − β₂) · g²; in step t from 1,
  w ← w − r · m / (1 − β₁ᵗ) / (√(s / (1 − β₂ᵗ)) + ε) (Kingma & Ba 2015, algorithm 1)
"""
