"""Where trials go on after their worker was lost: checkpoints in a folder, named after what they are of.

The name is a digest of all that a training depends on (objective with params, seeds, folds, epochs), so that a retry
finds the checkpoint of the attempt before it on any worker that sees the folder, and never one of another training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from hpsearch.errors import DataError
from hpsearch.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from hpsearch.worker.lockstep import Trainable
from hpsearch.worker.session import LeasedTrial

log = logging.getLogger(__name__)


def default_folder() -> str:
    """``$XDG_CACHE_HOME/hpsearch/checkpoints``, or in ``~/.cache``."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpsearch" / "checkpoints")


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

    def load(self, lease: LeasedTrial) -> list[list[Checkpoint]] | None:
        """The checkpoints of a trial by fold and repeat, all of one epoch; None if it starts from nothing."""
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

    def save(self, packs: Sequence[Trainable], leases: Sequence[LeasedTrial], live: Sequence[int]) -> None:
        """Keep where the live trials are, if the last time is long ago. A full disk costs a warning, no trial."""
        if time.monotonic() - self._saved_at < self._every:
            return
        try:
            for job in live:
                for fold, pack in enumerate(packs):
                    for repeat in range(leases[job].seeds):
                        path = self._path(leases[job], fold, repeat)
                        save_checkpoint(path, pack.checkpoint(job * leases[job].seeds + repeat))
        except OSError as error:
            log.warning("no checkpoint could be written to %s: %s", self._folder, error)
        self._saved_at = time.monotonic()

    def remove(self, lease: LeasedTrial) -> None:
        """Forget a trial that has ended."""
        folder = self._path(lease, 0, 0).rpartition("/")[0]
        if "://" not in folder:
            shutil.rmtree(folder, ignore_errors=True)
            return
        import fsspec  # comes with torch

        files, path = fsspec.url_to_fs(folder)
        with contextlib.suppress(OSError):
            files.rm(path, recursive=True)

    def _path(self, lease: LeasedTrial, fold: int, repeat: int) -> str:
        training = [lease.objective, lease.params, lease.epochs, lease.folds, lease.seeds]
        training += [lease.seed, lease.data_seed, lease.study_seed]
        digest = hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()
        return f"{self._folder}/{digest[:40]}/{fold}-{repeat}.ckpt"
