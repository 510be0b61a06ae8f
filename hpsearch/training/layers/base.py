"""What all layers of K models share: their tensors, the kinds of passes, and backward passes left to autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum

import torch


class Pass(Enum):
    """What a forward pass is for.

    ``TRAINING``: a backward pass follows; dropout is on; batch norm uses and remembers the minibatch's statistics.
    ``EVALUATION``: no dropout, running statistics. ``INSPECTION``: no dropout, the minibatch's statistics; nothing is
    changed, and activations say how they do.
    """

    TRAINING = "training"
    EVALUATION = "evaluation"
    INSPECTION = "inspection"


class Parameter:
    """One learned tensor of K members.

    Attributes:
        name: such as ``layers.0.weight``, unique in its model once the layer is placed in one.
        value: (K, …) float32.
        grad: same shape; backward passes add to it. What it starts from is the optimiser's business.
        penalised: whether regularisation applies (weights yes; biases, slopes, scales and shifts no).
    """

    def __init__(self, value: torch.Tensor, *, penalised: bool, name: str = "") -> None:
        self.name = name
        self.value = value
        self.grad = torch.zeros_like(value)
        self.penalised = penalised

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``, in that order."""
        self.value = self.value.index_select(0, rows)
        self.grad = self.grad.index_select(0, rows)


class Buffer:
    """One tensor of K members, (K, …), that is part of a model's state but not learned by gradient."""

    def __init__(self, value: torch.Tensor, *, name: str) -> None:
        self.name = name
        self.value = value

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``, in that order."""
        self.value = self.value.index_select(0, rows)


class Layer:
    """One step of K models. ``backward`` belongs to the latest training pass and may overwrite its activations.

    Activations are (K, features, batch) or, of images, (batch, K, channels, height, width); a first layer takes the
    minibatch that all members share, (batch, features) or (batch, height, width, channels).

    Attributes:
        name: its path in the model, once placed there.
        parameters: its learned tensors.
        buffers: its other tensors that a checkpoint must hold.
    """

    def __init__(self, parameters: Sequence[Parameter] = (), buffers: Sequence[Buffer] = ()) -> None:
        self.name = ""
        self.parameters = list(parameters)
        self.buffers = list(buffers)

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """Outputs for inputs; may overwrite the inputs unless the layer is the first."""
        raise NotImplementedError

    def backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """Add to the parameters' gradients; the gradient of the inputs, or None where nobody needs it.

        May overwrite ``gradient``; must be linear in it, member by member.
        """
        raise NotImplementedError

    def place(self, path: str) -> None:
        """Take ``path`` as its name and prefix those of its tensors; once."""
        self.name = path
        for tensor in self._tensors():
            tensor.name = f"{path}.{tensor.name}"

    def begin_epoch(self, epoch: int) -> None:
        """Restart whatever random stream it has from (member seed, epoch)."""

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the members at ``rows``, in that order."""
        for tensor in self._tensors():
            tensor.keep(rows)

    def walk(self) -> Iterator[Layer]:
        """The layer, or those that it is made of, in the order of a forward pass."""
        yield self

    def _tensors(self) -> list[Parameter | Buffer]:
        return [*self.parameters, *self.buffers]


class Autograd(Layer):
    """A layer that is a function of its inputs and parameters, with the backward pass of torch.autograd.

    The graph is of this layer alone and lives from a training pass to its backward pass.
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        parameters: Sequence[Parameter] = (),
        buffers: Sequence[Buffer] = (),
        *,
        first: bool = False,
    ) -> None:
        super().__init__(parameters, buffers)
        self._function = function
        self._first = first
        self._leaves: list[torch.Tensor] = []
        self._outputs = torch.empty(0)

    def forward(self, inputs: torch.Tensor, kind: Pass) -> torch.Tensor:
        """The function's value; its graph is kept if training."""
        leaves = [inputs.detach(), *(p.value.detach() for p in self.parameters)]
        if kind is not Pass.TRAINING:
            with torch.no_grad():
                return self._function(*leaves)
        with torch.enable_grad():
            self._leaves = leaves[1:] if self._first else leaves
            for leaf in self._leaves:
                leaf.requires_grad_()
            self._outputs = self._function(*leaves)
        return self._outputs.detach()

    def backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """As the function's derivatives say; None if first."""
        gradients = list(torch.autograd.grad(self._outputs, self._leaves, gradient))
        self._outputs = torch.empty(0)
        of_inputs = None if self._first else gradients.pop(0)
        for parameter, of_parameter in zip(self.parameters, gradients, strict=True):
            parameter.grad.add_(of_parameter)
        return of_inputs


def per_member(vector: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    """A vector (K,) in a shape that broadcasts over activations of either layout."""
    return vector.view(-1, *[1] * (2 if activations.dim() == 3 else 3))
