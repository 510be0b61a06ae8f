"""K modules of the user's as one: ``torch.func`` runs them together, or one runs as it is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch.func import functional_call, vmap

from hpsearch.errors import DataError
from hpsearch.training.layers import Buffer, Parameter
from hpsearch.training.layers.dropout import hashed
from hpsearch.training.streams import Purpose, numpy_stream
from hpsearch.training.task.dropout import MemberDropout

Tensors = dict[str, torch.Tensor]


def structure(module: torch.nn.Module) -> Hashable:
    """Modules with equal structures compute alike but for the values of their tensors, as far as can be seen.

    The types of all submodules, their plain attributes (numbers, texts, tuples of those: a dropout rate, a stride), and
    the names, shapes and types of tensors. What attributes of other types hold is not seen.
    """
    parts: list[Hashable] = []
    for name, part in module.named_modules():
        plain = {k: repr(v) for k, v in vars(part).items() if not k.startswith("_") and _is_plain(v)}
        parts.append((name, type(part), tuple(sorted(plain.items()))))
    parameters = [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in module.named_parameters()]
    buffers = [(n, tuple(b.shape), b.dtype) for n, b in module.named_buffers()]
    return (*parts, *parameters, *buffers)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list | set | frozenset):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


class Modules:
    """K ≥ 1 modules of equal :func:`structure`; their tensors are stacked, and those of the modules no longer matter.

    Dropout draws from a function of member, epoch, step and place, whatever the pack.

    Args:
        modules: on the device.
        seeds: of the members, ≥ 0.
        stacked: run all by one vmap; else K must be 1 and the module runs as it is.

    Attributes:
        parameters: what is learned; those of two axes or more are penalised, others (biases, scales) are not.
        buffers: all other tensors: running statistics, frozen weights.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], seeds: Sequence[int], *, stacked: bool) -> None:
        assert stacked or len(modules) == 1
        self.stacked = stacked
        self._module = modules[0]
        self._seeds = list(seeds)
        self._dropout = MemberDropout()
        named = [dict(module.named_parameters()) for module in modules]
        learned = [name for name, p in named[0].items() if p.requires_grad]
        others = [dict(m.named_buffers()) | {n: p for n, p in ps.items() if not p.requires_grad}
                  for m, ps in zip(modules, named, strict=True)]  # fmt: skip
        self.parameters = [
            Parameter(_stack([ps[n] for ps in named]), penalised=named[0][n].dim() > 1, name=n) for n in learned
        ]
        self.buffers = [Buffer(_stack([tensors[n] for tensors in others]), name=n) for n in others[0]]
        self._device = self.parameters[0].value.device
        self._leaves = [named[0][n] for n in learned]
        self._assigned: list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]] = []
        if not stacked:
            self._share(named[0])
        self.begin_epoch(0)

    def _share(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Have the module that stands alone keep its tensors here: it runs as it is, without a copy of anything."""
        places = [(p.name, p.value[0]) for p in self.parameters] + [(b.name, b.value[0]) for b in self.buffers]
        for name, value in places:
            if name in parameters:
                parameters[name].data = value
                continue
            path, _, last = name.rpartition(".")
            buffers = self._module.get_submodule(path)._buffers
            shared = buffers[last]
            assert shared is not None  # it has a name
            shared.data = value
            self._assigned.append((buffers, last, shared))

    def begin_epoch(self, epoch: int) -> None:
        """Restart every member's dropout from (seed, epoch)."""
        streams = [numpy_stream(seed, Purpose.DROPOUT, epoch) for seed in self._seeds]
        keys = [int(stream.integers(-(2**31), 2**31)) for stream in streams]
        self._keys = torch.tensor(keys, dtype=torch.int32, device=self._device)
        self._n_passes = 0

    def train(self, samples: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """A training pass, with its graph: the leaves, one per parameter, and outputs (K, batch, …).

        Leaves are (K, …), or as the module has them where it stands alone.
        """
        self._n_passes += 1
        if not self.stacked:
            return list(self._leaves), self._run_alone(samples, training=True)
        leaves = {p.name: p.value.detach().requires_grad_() for p in self.parameters}
        return list(leaves.values()), self._run_stacked(leaves, samples, training=True)

    @torch.no_grad()
    def evaluate(self, samples: torch.Tensor) -> torch.Tensor:
        """Outputs (K, batch, …) in evaluation mode."""
        if not self.stacked:
            return self._run_alone(samples, training=False)
        return self._run_stacked({p.name: p.value for p in self.parameters}, samples, training=False)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``, in that order."""
        self._seeds = [self._seeds[row] for row in rows.tolist()]
        self._keys = self._keys.index_select(0, rows)
        tensors: list[Parameter | Buffer] = [*self.parameters, *self.buffers]
        for tensor in tensors:
            tensor.keep(rows)

    def _run_stacked(self, parameters: Tensors, samples: torch.Tensor, *, training: bool) -> torch.Tensor:
        self._module.train(training)
        buffers = {b.name: b.value for b in self.buffers}
        together = vmap(self._call, in_dims=(0, 0, 0, None), randomness="error")
        with self._dropout:
            return together(parameters, buffers, self._pass_keys(), samples)

    def _call(self, parameters: Tensors, buffers: Tensors, key: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Each member under vmap; buffers are changed in place."""
        self._dropout.begin(key)
        tensors = parameters | buffers
        outputs = functional_call(self._module, tensors, (samples,))
        for name, buffer in buffers.items():
            if tensors[name] is not buffer:  # the module has assigned a new one
                buffer.copy_(tensors[name].detach())
        return _checked(outputs, samples)

    def _run_alone(self, samples: torch.Tensor, *, training: bool) -> torch.Tensor:
        if self._module.training != training:  # it takes a twentieth of a step
            self._module.train(training)
        self._dropout.begin(self._pass_keys()[0])
        with self._dropout:
            outputs = self._module(samples)
        for buffers, name, shared in self._assigned:
            assigned = buffers[name]
            if assigned is not shared and assigned is not None:
                shared.copy_(assigned.detach())
                buffers[name] = shared
        return _checked(outputs, samples).unsqueeze(0)

    def _pass_keys(self) -> torch.Tensor:
        return hashed(self._keys + self._n_passes)


def _checked(outputs: Any, samples: torch.Tensor) -> torch.Tensor:
    if not isinstance(outputs, torch.Tensor) or outputs.dim() == 0 or len(outputs) != len(samples):
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise DataError(f"the model must return one tensor (batch, …), but for {len(samples)} samples gives {got}")
    return outputs


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.detach() for tensor in tensors])
