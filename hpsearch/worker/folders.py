"""The folders that trials of the user's own code keep their checkpoints in, there again where a trial goes on.

Beside the checkpoints of the worker's own training: in a folder, or behind a URL that fsspec knows; then each trial
works in a temporary folder, which is copied back and forth.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from bisect import insort
from collections import defaultdict
from pathlib import Path
from typing import Any

from hpsearch.trial import Result, TrialState
from hpsearch.worker.session import LeasedTrial

log = logging.getLogger(__name__)


def default_folder() -> str:
    """``$XDG_CACHE_HOME/hpsearch/checkpoints``, or in ``~/.cache``."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpsearch" / "checkpoints")


class Folders:
    """Where the trials of one worker find their folders.

    Args:
        place: a folder, or a URL, shared by workers that take over each other's trials.
        every_seconds: what is behind a URL is brought up to date at most so often.
    """

    def __init__(self, place: str, *, every_seconds: float) -> None:
        self._place = place.rstrip("/")
        self._every = every_seconds
        self._kept: dict[tuple[str, str, int], list[tuple[float, str]]] = defaultdict(list)
        """(Study, stage, step) → trials that ended there and may go on later: badness and folder, best first."""

    def open(self, lease: LeasedTrial) -> Folder:
        """The folder of a trial, with what an earlier attempt, or the trial that it continues, left in it."""
        where = self._where(lease)
        for kept in self._kept.values():  # it goes on: where it had ended is no longer what its folder holds
            kept[:] = [each for each in kept if each[1] != where]
        folder = Folder(where, self._every)
        resume = lease.resume_from
        if folder.fetch(where) or resume is None or resume["trial"] == lease.trial:
            return folder
        if not folder.fetch(self._where(lease, trial=resume["trial"], epochs=resume["epochs"])):
            folder.note = f"trained anew: this worker has no checkpoint of trial {resume['trial']} to go on from"
        return folder

    def end(self, lease: LeasedTrial, folder: Folder, step: int, result: Result | None) -> None:
        """Let go of a folder: kept where the trial may go on, here or on another worker, else removed.

        Of those stopped or completed at one step, so many of the best are kept as the lease says.
        """
        if result is None:
            folder.save(now=True)
            folder.close()
            return
        n_kept = {TrialState.PRUNED: lease.keep_stopped, TrialState.COMPLETED: lease.keep_completed}
        is_kept = result.value is not None and self._is_kept(lease, folder, step, result, n_kept.get(result.state, 0))
        if is_kept:
            folder.save(now=True)
        else:
            remove(folder.where)
        folder.close()

    def _is_kept(self, lease: LeasedTrial, folder: Folder, step: int, result: Result, n_kept: int) -> bool:
        sign = -1.0 if lease.metric["direction"] == "maximize" else 1.0
        kept = self._kept[lease.study, lease.stage, step]
        insort(kept, (sign * (result.value or 0.0), folder.where))
        while len(kept) > n_kept:
            _, worst = kept.pop()
            if worst != folder.where:
                remove(worst)
        return any(where == folder.where for _, where in kept)

    def _where(self, lease: LeasedTrial, *, trial: int | None = None, epochs: int | None = None) -> str:
        number = lease.trial if trial is None else trial
        training = [lease.objective, lease.params, epochs or lease.epochs, lease.seed, lease.study_seed]
        digest = hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()
        return f"{self._place}/{lease.study}-{number}-{digest[:16]}"


class Folder:
    """One trial's folder.

    Attributes:
        path: where the trial finds it.
        where: the same, or the URL that it is kept behind.
        note: what is to be said of a trial that was to go on from another one, and cannot.
    """

    def __init__(self, where: str, every_seconds: float) -> None:
        self.where = where
        self.note: str | None = None
        self._every = every_seconds
        self._saved_at = time.monotonic()
        self._is_remote = "://" in where
        self.path = Path(tempfile.mkdtemp(prefix="hpsearch-") if self._is_remote else Path(where).resolve())
        self.path.mkdir(parents=True, exist_ok=True)

    def fetch(self, where: str) -> bool:
        """Fill it from a place; False if there is nothing."""
        if not self._is_remote:
            if where != self.where and Path(where).is_dir():
                shutil.copytree(where, self.path, dirs_exist_ok=True)
            return any(self.path.iterdir())
        files, root = _files(where)
        if not files.isdir(root):
            return False
        for name in files.find(root):
            target = self.path / os.path.relpath(name, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(name, str(target))
        return any(self.path.iterdir())

    def save(self, *, now: bool = False) -> None:
        """Keep what the trial wrote, if the last time is long ago. A full disk costs a warning, no trial."""
        if not now and time.monotonic() - self._saved_at < self._every:
            return
        self._saved_at = time.monotonic()
        with contextlib.suppress(OSError):
            os.utime(self.path)  # its worker lives: nobody sweeps it away
        if self._is_remote:
            try:
                self._upload()
            except OSError as error:
                log.warning("no checkpoint could be written to %s: %s", self.where, error)

    def _upload(self) -> None:
        files, root = _files(self.where)
        mine = {str(p.relative_to(self.path)): p for p in self.path.rglob("*") if p.is_file()}
        for name, path in mine.items():
            files.makedirs(f"{root}/{os.path.dirname(name)}".rstrip("/"), exist_ok=True)
            files.put_file(str(path), f"{root}/{name}")
        for name in files.find(root):
            if os.path.relpath(name, root) not in mine:
                files.rm_file(name)

    def close(self) -> None:
        """Forget what is temporary; a folder without anything in it is not kept."""
        if self._is_remote:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            self.path.rmdir()


def remove(where: str) -> None:
    """Remove a folder, if it is there."""
    if "://" not in where:
        shutil.rmtree(where, ignore_errors=True)
        return
    files, root = _files(where)
    with contextlib.suppress(OSError):
        files.rm(root, recursive=True)


def _files(where: str) -> tuple[Any, str]:
    try:
        import fsspec  # heavy, and only for URLs
    except ModuleNotFoundError:
        raise OSError(f"{where} needs fsspec: pip install fsspec") from None
    files, root = fsspec.url_to_fs(where)
    return files, str(root)
