"""A leased trial, ready to train."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hpsearch.training.checkpoints import Checkpoint
from hpsearch.worker.session import LeasedTrial

Objective = TypeVar("Objective")


@dataclass(frozen=True, slots=True)
class Job(Generic[Objective]):
    """A trial to train.

    Attributes:
        objective: with the trial's params set.
        shape: trials of one study whose shapes are equal may share a pack.
        left: where an attempt before left it, by fold and repeat; None at the beginning.
    """

    lease: LeasedTrial
    objective: Objective
    shape: Hashable
    left: list[list[Checkpoint]] | None

    @property
    def kind(self) -> Hashable:
        """What trials that may share a pack have in common, however far each is."""
        lease = self.lease
        return (lease.study, lease.stage, lease.data_seed, lease.epochs, lease.folds, lease.seeds, self.shape)

    @property
    def key(self) -> Hashable:
        """Jobs of equal keys may share packs: of one kind, going on from one epoch."""
        return (self.kind, self.left[0][0].epoch if self.left else 0)
