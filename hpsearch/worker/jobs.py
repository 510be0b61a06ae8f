"""A leased trial, ready to train."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hpsearch.training.checkpoints import Checkpoint
from hpsearch.worker.checkpoints import Checkpoints
from hpsearch.worker.lockstep import Lockstep, Trainable
from hpsearch.worker.session import Channel, LeasedTrial

Objective = TypeVar("Objective")


@dataclass(frozen=True, slots=True)
class Job(Generic[Objective]):
    """A trial to train.

    Attributes:
        objective: with the trial's params set.
        shape: trials of one study whose shapes are equal may share a pack.
        left: where an attempt before, or the trial that it continues, left it, by fold and repeat; None if it begins.
    """

    lease: LeasedTrial
    objective: Objective
    shape: Hashable
    left: list[list[Checkpoint]] | None

    @property
    def note(self) -> str | None:
        """What is to be said of a trial that was to go on from another one, and could not."""
        resume = self.lease.resume_from
        if resume is None or self.left is not None or resume["trial"] == self.lease.trial:
            return None
        return f"trained anew: this worker has no checkpoint of trial {resume['trial']} to go on from"

    @property
    def kind(self) -> Hashable:
        """What trials that may share a pack have in common, however far each is."""
        lease = self.lease
        return (lease.study, lease.stage, lease.data_seed, lease.epochs, lease.folds, lease.seeds, self.shape)

    @property
    def key(self) -> Hashable:
        """Jobs of equal keys may share packs: of one kind, going on from one epoch."""
        return (self.kind, self.left[0][0].epoch if self.left else 0)


def train_jobs(
    packs: Sequence[Trainable], jobs: Sequence[Job[Any]], session: Channel, checkpoints: Checkpoints | None
) -> None:
    """Train packs of these jobs to their end, keeping checkpoints on the way where there is a place for them."""
    leases, notes = [job.lease for job in jobs], [job.note for job in jobs]
    if checkpoints is None:
        Lockstep(packs, leases, session, notes=notes).run()
        return
    kept = checkpoints

    def after_epoch(live: list[int]) -> None:
        if kept.are_due:
            session.flush()  # who goes on from these does not report the epochs before again
            kept.save(packs, leases, live)

    Lockstep(
        packs,
        leases,
        session,
        after_epoch=after_epoch,
        before_end=lambda job, result: kept.end(packs, leases[job], job, result),
        notes=notes,
    ).run()
    for lease in leases:
        kept.remove(lease)
