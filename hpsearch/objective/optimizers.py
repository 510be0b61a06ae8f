"""How it is trained: ``objective.optimizer`` and ``objective.regularization``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpsearch.document import Document

Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Schedule(Document):
    """What the learning rate is multiplied by, beside ``lr_decay`` per epoch.

    ``constant``: 1. ``step``: ``factor`` every ``step_epochs`` epochs. ``cosine`` and ``linear``: from 1 down to
    ``final`` over the epochs after the warm-up. ``one_cycle``: from ``final`` up to 1 in the first 30 % and down to
    ``final`` again, by a cosine (Smith 2018). All but ``step`` move with every minibatch.
    """

    kind: Literal["constant", "step", "cosine", "linear", "one_cycle"] = "constant"
    step_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_epochs: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """The learning rate rises linearly from 0 over so many epochs."""


class Optimizer(Document):
    """The step. ``sgd`` with ``momentum`` 0 is plain; ``momentum`` is another name for ``sgd``.

    With gradient g of the mean minibatch loss and its penalties: ``sgd``, ``momentum``: v ← momentum · v − lr · g,
    w ← w + v (cs231n, lecture 6). ``nesterov``, ``adagrad``, ``rmsprop`` (``rho``), ``adam``, ``adamw`` (``beta1``,
    ``beta2``): as in ``torch.optim``, with ``epsilon`` added to the root.
    """

    kind: Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"] = "sgd"
    lr: Finite = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    rho: Annotated[float, Field(ge=0, lt=1)] = 0.99
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """After every epoch lr ← lr · lr_decay."""
    schedule: Schedule = Schedule()
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """A gradient whose norm over all parameters is larger is scaled down to it."""


class Regularization(Document):
    """``l2`` adds ½ · l2 · Σ w², ``l1`` adds l1 · Σ |w|, over all weights (not biases), to the loss; both: elastic net.

    ``weight_decay`` is decoupled: w ← w − lr · weight_decay · w beside the optimiser's step (Loshchilov & Hutter 2019).
    """

    l2: Finite = 0.0
    l1: Finite = 0.0
    weight_decay: Finite = 0.0
