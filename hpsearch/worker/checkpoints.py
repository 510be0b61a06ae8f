"""Where trials go on after their worker was lost: checkpoints in a folder, named after what they are of.

The name is a digest of all that a training depends on (objective with params, seeds, folds, epochs), so that a retry
finds the checkpoint of the attempt before it on any worker that sees the folder, and never one of another training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from bisect import insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpsearch.errors import DataError
from hpsearch.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from hpsearch.trial import Result, TrialState
from hpsearch.worker.lockstep import Trainable
from hpsearch.worker.session import LeasedTrial

log = logging.getLogger(__name__)

FORGOTTEN_SECONDS = 7 * 24 * 3600
"""Checkpoints in a folder that nobody has touched for so long are deleted by the next worker that starts."""


class Checkpoints:
    """The checkpoints of one worker's trials.

    Args:
        folder: a path, or a URL that fsspec knows (``s3://…``), shared by workers that take over each other's trials.
        every_seconds: how long a trial trains between two of them: what a lost worker costs at most, and an epoch.
    """

    def __init__(self, folder: str, *, every_seconds: float) -> None:
        self._folder = folder.rstrip("/")
        self._every = every_seconds
        self._saved_at = time.monotonic()
        self._kept: dict[tuple[str, str, int], list[tuple[float, str]]] = defaultdict(list)
        """(Study, stage, epoch) → trials that ended there and may go on later: badness and folder, best first."""
        self._sweep()

    def load(self, lease: LeasedTrial) -> list[list[Checkpoint]] | None:
        """The checkpoints of a trial by fold and repeat, all of one epoch; None if it starts from nothing.

        Of a trial that continues one of another stage: its own if there are, else those of the other.
        """
        self._unlist(self._trial_folder(lease))
        found = self._load(lease)
        resume = lease.resume_from
        if found is None and resume is not None:
            found = self._load(replace(lease, epochs=resume["epochs"]))
            if found is None:
                log.info("%s %d: no checkpoint of trial %d is here", lease.study, lease.trial, resume["trial"])
        return found

    def _load(self, lease: LeasedTrial) -> list[list[Checkpoint]] | None:
        try:
            found = [
                [load_checkpoint(self._path(lease, fold, repeat)) for repeat in range(lease.seeds)]
                for fold in range(lease.folds or 1)
            ]
        except OSError:
            return None
        except DataError as error:
            log.warning("%s", error)
            return None
        epochs = {checkpoint.epoch for members in found for checkpoint in members}
        return found if len(epochs) == 1 else None

    @property
    def are_due(self) -> bool:
        """Whether the last time is long ago."""
        return time.monotonic() - self._saved_at >= self._every

    def save(self, packs: Sequence[Trainable], leases: Sequence[LeasedTrial], live: Sequence[int]) -> None:
        """Keep where the live trials are. A full disk costs a warning, no trial."""
        for job in live:
            if not self._save(packs, leases[job], job):
                break
        self._saved_at = time.monotonic()

    def _save(self, packs: Sequence[Trainable], lease: LeasedTrial, job: int) -> bool:
        try:
            for fold, pack in enumerate(packs):
                for repeat in range(lease.seeds):
                    save_checkpoint(self._path(lease, fold, repeat), pack.checkpoint(job * lease.seeds + repeat))
        except OSError as error:
            log.warning("no checkpoint could be written to %s: %s", self._folder, error)
            return False
        return True

    def end(self, packs: Sequence[Trainable], lease: LeasedTrial, job: int, result: Result) -> None:
        """Keep where a trial ended that may go on later, if it is among the best that ended there.

        With so many better ones at the same epoch as the lease says it never will.
        """
        n_kept = {TrialState.PRUNED: lease.keep_stopped, TrialState.COMPLETED: lease.keep_completed}.get(
            result.state, 0
        )
        if not n_kept or result.value is None:
            return
        sign = -1.0 if lease.metric["direction"] == "maximize" else 1.0
        kept, folder = self._kept[lease.study, lease.stage, packs[0].epoch], self._trial_folder(lease)
        insort(kept, (sign * result.value, folder))
        while len(kept) > n_kept:
            _, worst = kept.pop()
            if worst != folder:
                self._delete(worst)
        if any(folder == each for _, each in kept):
            self._save(packs, lease, job)

    def remove(self, lease: LeasedTrial) -> None:
        """Forget a trial that has ended, unless it is kept because it may go on."""
        folder = self._trial_folder(lease)
        if not any(folder == each for kept in self._kept.values() for _, each in kept):
            self._delete(folder)

    def _unlist(self, folder: str) -> None:
        """A trial goes on: where it had ended is no longer what its folder holds."""
        for kept in self._kept.values():
            kept[:] = [each for each in kept if each[1] != folder]

    def _sweep(self) -> None:
        """Delete what nobody touched for long: of trials whose study ended otherwise, or that were never let on."""
        if "://" in self._folder or not Path(self._folder).is_dir():
            return
        for folder in Path(self._folder).iterdir():
            with contextlib.suppress(OSError):
                if folder.is_dir() and time.time() - folder.stat().st_mtime > FORGOTTEN_SECONDS:
                    shutil.rmtree(folder)

    @staticmethod
    def _delete(folder: str) -> None:
        if "://" not in folder:
            shutil.rmtree(folder, ignore_errors=True)
            return
        import fsspec  # comes with torch

        files, path = fsspec.url_to_fs(folder)
        with contextlib.suppress(OSError):
            files.rm(path, recursive=True)

    def _path(self, lease: LeasedTrial, fold: int, repeat: int) -> str:
        return f"{self._trial_folder(lease)}/{fold}-{repeat}.ckpt"

    def _trial_folder(self, lease: LeasedTrial) -> str:
        training = [lease.objective, lease.params, lease.epochs, lease.folds, lease.seeds]
        training += [lease.seed, lease.data_seed, lease.study_seed]
        digest = hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()
        return f"{self._folder}/{digest[:40]}"
