"""Optimisers over stacked parameters, with one value of every hyperparameter per member.

A step is ``set_step``, ``begin``, a backward pass of the gradient of the mean loss times ``scale``, then ``apply``.
``begin`` sets what the backward pass adds to, so that an optimiser whose step is linear in the gradient needs no
gradient buffer (see :class:`DirectSgd`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch

from hpsearch.objective import Trained
from hpsearch.training.layers import Parameter
from hpsearch.training.rules import RULES, Coefficients, Rule, Slots
from hpsearch.training.schedules import Floats, LearningRates

LARGE = 32_768
"""From so many numbers per member on, a parameter is updated member by member on a CPU, each in the core's second-level
cache; for smaller ones the calls would cost more than they save."""

BLOCK = 128
"""Minibatches whose coefficients are worked out, and sent to the device, at a time."""

ALIASES = {"momentum": "sgd", "adamw": "adam"}
"""AdamW is Adam whose weight decay is decoupled, and ``weight_decay`` always is (Loshchilov & Hutter 2019)."""


def optimizer_key(objective: Trained) -> Hashable:
    """Trials with equal keys may share an optimiser; all numbers are per member, schedules too."""
    return _rule_name(objective), _is_linear(objective)


def _rule_name(objective: Trained) -> str:
    return ALIASES.get(objective.optimizer.kind, objective.optimizer.kind)


def _is_linear(objective: Trained) -> bool:
    return objective.optimizer.clip_norm is None and objective.regularization.l1 == 0


def build_optimiser(
    objectives: Sequence[Trained],
    parameters: Sequence[Parameter],
    *,
    epochs: int,
    steps_per_epoch: int,
    device: str,
) -> StackedOptimiser:
    """The optimiser of K members.

    Args:
        objectives: of the members, of equal :func:`optimizer_key`.
        parameters: stacked (K, …), on the device; their gradients are set to 0.
        epochs: how many are trained, ≥ 1: schedules end with them.
        steps_per_epoch: minibatches per epoch, ≥ 1.
        device: where the vectors of settings go.

    Raises:
        ValueError: the objectives' keys differ.
    """
    keys = {optimizer_key(objective) for objective in objectives}
    if len(keys) != 1:
        raise ValueError(f"members of one pack need one kind of optimiser, not {len(keys)}")
    name = _rule_name(objectives[0])
    rates = LearningRates([o.optimizer for o in objectives], epochs=epochs, steps_per_epoch=steps_per_epoch)
    make = DirectSgd if name == "sgd" and _is_linear(objectives[0]) else StackedOptimiser
    return make(RULES[name], objectives, parameters, rates, steps_per_epoch=steps_per_epoch, device=device)


class StackedOptimiser:
    """Any rule, with penalties in the gradient, clipping, and decoupled weight decay.

    With g the gradient of the mean loss plus l2 · w + l1 · sign(w) (of penalised parameters; sign(0) = 0): if its norm
    over all parameters of a member exceeds ``clip_norm``, g is scaled down to it. Then
    w ← (1 − rate · weight_decay) · w for penalised parameters, and the rule's change is added.

    Made by :func:`build_optimiser`.

    Attributes:
        scale: (K, 1, 1), what the gradient of the mean loss is multiplied by before the backward pass; read it after
            ``begin``.
    """

    def __init__(
        self,
        rule: Rule,
        objectives: Sequence[Trained],
        parameters: Sequence[Parameter],
        rates: LearningRates,
        *,
        steps_per_epoch: int,
        device: str,
    ) -> None:
        self._rule = rule
        self._parameters = list(parameters)
        self._rates = rates
        self._steps_per_epoch = steps_per_epoch
        self._device = device
        optimizers = [o.optimizer for o in objectives]
        penalties = [o.regularization for o in objectives]
        constants = [rule.constants(o) for o in optimizers]
        self._constants = {name: self._vector([c[name] for c in constants]) for name in constants[0]}
        self._l1 = self._vector([p.l1 for p in penalties])
        self._l2 = self._vector([p.l2 for p in penalties])
        self._has_l1, self._has_l2 = any(p.l1 for p in penalties), any(p.l2 for p in penalties)
        self._decays = any(p.weight_decay for p in penalties)
        clips = [o.clip_norm for o in optimizers]
        self._clip = self._vector([torch.inf if c is None else c for c in clips]) if any(clips) else None
        # In double precision, for 1 − 0.999 of float32 numbers is off by 1e-5.
        self._weight_decay = np.array([p.weight_decay for p in penalties], dtype=np.float64)
        self._beta1 = np.array([o.beta1 for o in optimizers], dtype=np.float64)
        self._beta2 = np.array([o.beta2 for o in optimizers], dtype=np.float64)
        for p in self._parameters:
            p.grad.zero_()
        self._slots: list[Slots] = self._empty_slots()
        self._first = self._end = 0  # minibatches whose coefficients are in the table
        self._table: Coefficients = {}
        self._row = -1
        self._measuring = False
        self._ratios: list[tuple[str, torch.Tensor]] | None = None
        self._norm = torch.empty(0)
        self._measured_norm: torch.Tensor | None = None
        self.scale = self._vector([1.0] * len(objectives)).view(-1, 1, 1)
        self.set_step(0)

    def _empty_slots(self) -> list[Slots]:
        return [tuple(torch.zeros_like(p.value) for _ in self._rule.slots) for p in self._parameters]

    def _vector(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    # Coefficients of a minibatch

    def set_step(self, step: int) -> None:
        """Say which minibatch comes next, counted from 0 over all epochs: rates and bias corrections follow."""
        if not self._first <= step < self._end:
            self._tabulate(step)
        row = step - self._first if len(self._table["rate"]) > 1 else 0
        if row != self._row:
            self._row = row
            self._coefficients = {name: table[row] for name, table in self._table.items()}
            self._on_step()

    def _tabulate(self, step: int) -> None:
        end_of_epoch = (step // self._steps_per_epoch + 1) * self._steps_per_epoch
        moving = self._rates.moving or self._rule.corrected
        self._first, self._end = step, min(step + BLOCK, end_of_epoch) if moving else end_of_epoch
        self._row = -1
        steps = np.arange(step, self._end if moving else step + 1)
        rates = self._rates.at(steps)
        table = {"rate": rates, "kept": 1 - rates * self._weight_decay}
        if self._rule.corrected:
            t = steps[:, None] + 1
            table["rate"] = rates / (1 - self._beta1**t)
            table["root"] = np.sqrt(1 - self._beta2**t)
        self._table = {name: self._floats(values) for name, values in table.items()}

    def _floats(self, values: Floats) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device)

    def _on_step(self) -> None:
        """Called when the coefficients have changed."""

    # A step

    def begin(self, *, measure: bool = False) -> None:
        """Get ready for a backward pass.

        Args:
            measure: keep :meth:`gradient_norm` and :meth:`updates` of this step, for about the cost of another one.
        """
        self._measuring = measure
        for p in self._parameters:
            p.grad.zero_()

    def apply(self) -> None:
        """Change the weights by the gradients that the backward pass has added up."""
        whole = self._measuring or self._clip is not None  # a norm needs all of a gradient first
        if whole:
            self._finish_gradients()
        ratios = []
        for p, slots in zip(self._parameters, self._slots, strict=True):
            before = p.value.clone() if self._measuring and p.penalised else None
            for rows in self._blocks(p):
                self._change(p, slots, rows, penalise=not whole)
            if before is not None:
                ratios.append((p.name, _norms(p.value - before) / _norms(before)))
        if self._measuring:
            self._ratios, self._measured_norm = ratios, self._norm

    def _finish_gradients(self) -> None:
        for p in self._parameters:
            for rows in self._blocks(p):
                self._penalise(p, rows)
        self._norm = torch.stack([_norms(p.grad) for p in self._parameters]).square().sum(0).sqrt()
        if self._clip is not None:
            factor = (self._clip / self._norm).clamp(max=1)
            for p in self._parameters:
                p.grad.mul_(_broadcast(factor, p.grad))

    def _penalise(self, p: Parameter, rows: slice) -> None:
        if not p.penalised:
            return
        value, grad = p.value[rows], p.grad[rows]
        if self._has_l2:
            grad.addcmul_(value, _broadcast(self._l2[rows], value))
        if self._has_l1:
            grad.addcmul_(value.sign(), _broadcast(self._l1[rows], value))

    def _change(self, p: Parameter, slots: Slots, rows: slice, *, penalise: bool) -> None:
        if penalise:
            self._penalise(p, rows)
        value = p.value[rows]
        c = {n: _broadcast(v[rows], value) for n, v in (*self._constants.items(), *self._coefficients.items())}
        if self._decays and p.penalised:
            value.mul_(c["kept"])
        value.add_(self._rule.change(p.grad[rows], tuple(slot[rows] for slot in slots), c))

    def _blocks(self, p: Parameter) -> Iterator[slice]:
        """Members that are updated together."""
        n_members = len(p.value)
        if p.value.device.type != "cpu" or p.value[0].numel() < LARGE:
            yield slice(n_members)
        else:
            yield from (slice(k, k + 1) for k in range(n_members))

    # What is asked of it

    def penalty(self) -> torch.Tensor:
        """½ · l2 · Σ w² + l1 · Σ |w| over the penalised parameters of each member, (K,)."""
        penalised = [p.value for p in self._parameters if p.penalised]
        penalty = 0.5 * self._l2 * torch.stack([_norms(value) for value in penalised]).square().sum(0)
        if self._has_l1:
            penalty += self._l1 * torch.stack([value.flatten(1).abs().sum(1) for value in penalised]).sum(0)
        return penalty

    def gradient_norm(self) -> torch.Tensor:
        """Norm of g over all parameters, penalties included and before any clipping, at the latest measured step, (K,).

        Raises:
            ValueError: no step has been measured.
        """
        if self._measured_norm is None:
            raise ValueError("no step has been measured: call begin(measure=True)")
        return self._measured_norm

    def updates(self) -> list[tuple[str, torch.Tensor]]:
        """Per penalised parameter: name and ‖change of w‖ / ‖w before‖ (K,) at the latest measured step.

        About 1e-3 is healthy (cs231n, "Ratio of weights:updates"). Of weights that are all 0 it is infinite, or NaN if
        they stay so.

        Raises:
            ValueError: no step has been measured.
        """
        if self._ratios is None:
            raise ValueError("no step has been measured: call begin(measure=True)")
        return self._ratios

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``, in that order; the parameters and their gradients are kept by their owner."""
        chosen = rows.tolist()
        self._constants = {name: vector.index_select(0, rows) for name, vector in self._constants.items()}
        self._table = {name: table.index_select(1, rows) for name, table in self._table.items()}
        self._l1, self._l2 = self._l1.index_select(0, rows), self._l2.index_select(0, rows)
        self.scale = self.scale.index_select(0, rows)
        if self._clip is not None:
            self._clip = self._clip.index_select(0, rows)
        self._slots = [tuple(slot.index_select(0, rows) for slot in slots) for slots in self._slots]
        self._rates.keep(chosen)
        self._weight_decay = self._weight_decay[chosen]
        self._beta1, self._beta2 = self._beta1[chosen], self._beta2[chosen]
        if self._ratios is not None and self._measured_norm is not None:
            self._ratios = [(name, ratio.index_select(0, rows)) for name, ratio in self._ratios]
            self._measured_norm = self._measured_norm.index_select(0, rows)
        self._row, step = -1, self._first + max(self._row, 0)
        self.set_step(step)

    # Checkpoints

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What it remembers between steps, by ``slot.parameter``, each (K, …): the tensors themselves, not copies."""
        return {
            f"{slot}.{p.name}": tensor
            for p, slots in zip(self._parameters, self._remembered(), strict=True)
            for slot, tensor in zip(self._rule.slots, slots, strict=True)
        }

    def _remembered(self) -> list[Slots]:
        return self._slots

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a :attr:`state`; nothing else but ``set_step`` is needed to go on where it was taken.

        Raises:
            ValueError: a tensor is missing, left over, or of another shape.
        """
        own = self.state
        if own.keys() != state.keys():
            odd = ", ".join(sorted(own.keys() ^ state.keys()))
            raise ValueError(f"the state is of another optimiser or model: {odd} on one side alone")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
        for name, tensor in own.items():
            tensor.copy_(state[name])


class DirectSgd(StackedOptimiser):
    """``sgd`` without a gradient: the backward pass adds −rate · g straight into the velocity.

    v ← momentum · v − rate · l2 · w is set before the backward pass, for both are linear; so it takes neither clipping
    nor l1. Between steps the velocity lives in ``Parameter.grad``. A measured step tells g from the velocity before
    and after it; where it cannot (a rate of 0, decoupled weight decay) it takes the long way round.
    """

    _before: list[torch.Tensor]
    _detour = False

    def _empty_slots(self) -> list[Slots]:
        return [() for _ in self._parameters]

    def _remembered(self) -> list[Slots]:
        return [(p.grad,) for p in self._parameters]

    def _on_step(self) -> None:
        rate = self._coefficients["rate"]
        self._shrink = -rate * self._l2
        self._step_scale = -rate.view(-1, 1, 1)
        if self._device == "cpu":
            self._momenta, self._shrinks = self._constants["momentum"].tolist(), self._shrink.tolist()

    def begin(self, *, measure: bool = False) -> None:
        """See :class:`StackedOptimiser`."""
        self._measuring = measure
        self._detour = measure and (self._decays or not bool((self._coefficients["rate"] > 0).all()))
        if self._detour:
            self._slots = self._remembered()
            for p in self._parameters:
                p.grad = torch.zeros_like(p.value)
            self.scale = torch.ones_like(self._step_scale)
            return
        if measure:
            self._before = [p.grad.clone() for p in self._parameters]
        self.scale = self._step_scale
        for p in self._parameters:
            if p.penalised and p.value.device.type == "cpu" and p.value[0].numel() >= LARGE:
                for v, w, momentum, shrink in zip(p.grad, p.value, self._momenta, self._shrinks, strict=True):
                    v.mul_(momentum).add_(w, alpha=shrink)
                continue
            p.grad.mul_(_broadcast(self._constants["momentum"], p.grad))
            if p.penalised:
                p.grad.addcmul_(p.value, _broadcast(self._shrink, p.value))

    def apply(self) -> None:
        """See :class:`StackedOptimiser`."""
        if self._detour:
            super().apply()
            for p, (velocity,) in zip(self._parameters, self._slots, strict=True):
                p.grad = velocity
            self._slots = self._empty_slots()
            return
        if self._measuring:
            self._measure()
        for p in self._parameters:
            if self._decays and p.penalised:
                p.value.mul_(_broadcast(self._coefficients["kept"], p.value))
            p.value.add_(p.grad)

    def _measure(self) -> None:
        """With v the velocity before and v' after a step: v' − momentum · v = −rate · g, and v' is the change of w."""
        self._ratios = [(p.name, _norms(p.grad) / _norms(p.value)) for p in self._parameters if p.penalised]
        changes = [
            _norms(v.mul_(_broadcast(-self._constants["momentum"], v)).add_(p.grad))
            for p, v in zip(self._parameters, self._before, strict=True)
        ]
        self._measured_norm = torch.stack(changes).square().sum(0).sqrt() / self._coefficients["rate"]
        self._before = []


def _broadcast(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(K,) as (K, 1, …)."""
    return vector.view(-1, *[1] * (like.dim() - 1))


def _norms(tensor: torch.Tensor) -> torch.Tensor:
    """Norm of each member, (K,)."""
    norms: torch.Tensor = torch.linalg.vector_norm(tensor.reshape(len(tensor), -1), dim=1)
    return norms
