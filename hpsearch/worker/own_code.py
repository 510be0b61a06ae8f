"""What runners of the user's own code share: where it lies, its environment, what a check says."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from hpsearch.trial import Result
from hpsearch.worker.folders import Folders
from hpsearch.worker.handing import Pace, Results, run_in_turn
from hpsearch.worker.own_trial import OwnTrial
from hpsearch.worker.program import Guard
from hpsearch.worker.session import Channel, LeasedTrial


class Setting(TypedDict):
    """The arguments of :class:`OwnCodeRunner`."""

    allow: Sequence[str]
    checkpoints: Folders
    folders: NotRequired[Sequence[Path]]
    device: NotRequired[str]
    guard: NotRequired[Guard]


class OwnCodeRunner(ABC):
    """Runs code of users, one trial after the other.

    Args:
        allow: patterns of entry points or programs that may run here.
        checkpoints: where trials find their folders.
        folders: where code is looked for first, beside the working directory.
        device: a torch device; of several GPUs the user's code sees this one alone.
        guard: who ends the processes if this one is gone.
    """

    def __init__(
        self,
        *,
        allow: Sequence[str],
        checkpoints: Folders,
        folders: Sequence[Path] = (),
        device: str = "cpu",
        guard: Guard | None = None,
    ) -> None:
        self._allow = list(allow)
        self._places = places(folders)
        self._checkpoints = checkpoints
        self._environment = environment(device)
        self._guard = guard or Guard()
        self._pace = Pace()

    @property
    def capacity(self) -> int:
        """See :class:`hpsearch.worker.loop.Runner`: one, but for trials that take next to no time."""
        return self._pace.capacity

    def run(self, leases: Sequence[LeasedTrial], session: Channel) -> None:
        """See :class:`hpsearch.worker.loop.Runner`."""
        run_in_turn(leases, session, self._pace, partial(self._run, session))

    @abstractmethod
    def _run(self, session: Channel, lease: LeasedTrial, results: Results) -> None:
        """Run one trial to its end."""

    @staticmethod
    def _hand_over(trial: OwnTrial, result: Result | None, results: Results, session: Channel) -> None:
        """Hand over how a trial ended, or give it back."""
        if result is not None:
            results.add(result, reports=trial.unsent, log=trial.unsent_log)
        elif trial.end is not None and trial.end.release:
            session.release([trial.lease.token])


def places(folders: Sequence[Path]) -> list[str]:
    """Where the user's files are looked for: the folders given, then the working directory."""
    return list(dict.fromkeys([*(str(Path(folder).resolve()) for folder in folders), os.getcwd()]))


def environment(device: str) -> dict[str, str]:
    """This process's, without what is the worker's own: its token, its store. A GPU of several is the only one seen."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HPSEARCH_")}
    kind, _, index = device.partition(":")
    if kind == "cuda" and index.isdecimal():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else []
        kept["CUDA_VISIBLE_DEVICES"] = names[int(index)] if int(index) < len(names) else index
    return kept


def check(name: str, fault: str | None, message: str) -> dict[str, Any]:
    """A check of a study, failed if there is a fault."""
    status = "pass" if fault is None else "fail"
    return {"name": name, "status": status, "message": (fault or message)[:2000], "numbers": {}}
