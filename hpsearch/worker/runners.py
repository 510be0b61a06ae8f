"""What one worker can run: the runners of every kind of objective that is installed and allowed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpsearch.errors import InvalidInput
from hpsearch.worker.command import CommandRunner
from hpsearch.worker.folders import Folders, default_folder
from hpsearch.worker.loop import Runner
from hpsearch.worker.program import Guard
from hpsearch.worker.python import PythonRunner


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a worker works with.

    Attributes:
        device: ``auto`` or a torch device.
        width: trials per pack; None finds the fastest.
        checkpoints: folder or URL; None is the user's cache.
        allow: patterns of code that may run; None or none: only what comes with us.
        folders: where that code is looked for first.
        data_root: where data must lie.
    """

    device: str
    threads: int
    width: int | None
    checkpoints: str | None
    checkpoint_seconds: float
    allow: Sequence[str] | None
    folders: Sequence[Path]
    data_root: Path


@contextmanager
def runners(equipment: Equipment) -> Iterator[tuple[str, dict[str, Runner]]]:
    """The device, and the runners by kind of objective. Without torch there are those of the user's own code alone.

    Raises:
        InvalidInput: torch is not installed and no code is allowed, or there is no such device or folder.
    """
    if not equipment.data_root.is_dir():
        raise InvalidInput(f"--data-root {equipment.data_root}: there is no such folder")
    device, found = _training(equipment)
    if not equipment.allow:
        yield device, found
        return
    code: dict[str, Any] = {
        "allow": equipment.allow,
        "folders": equipment.folders,
        "device": device,
        "checkpoints": Folders(_place(equipment), every_seconds=equipment.checkpoint_seconds),
        "guard": Guard(),
    }
    python, command = PythonRunner(**code), CommandRunner(**code)
    try:
        yield device, {**found, "python": python, "command": command}
    finally:
        python.close()
        command.close()


def _training(equipment: Equipment) -> tuple[str, dict[str, Runner]]:
    try:
        from hpsearch.training.devices import devices  # torch is heavy, and an extra
        from hpsearch.worker.checkpoints import Checkpoints
        from hpsearch.worker.task import TaskRunner
        from hpsearch.worker.train import TrainRunner
    except ModuleNotFoundError as error:
        if equipment.allow:
            return "cpu", {}
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[train]'") from None
    known = ["cpu", *devices()]
    if equipment.device not in ("auto", *known):
        there = ", ".join(dict.fromkeys(known))
        raise InvalidInput(f"--device {equipment.device} is not on this machine: it has {there}")
    options: dict[str, Any] = {
        "device": devices()[0] if equipment.device == "auto" else equipment.device,
        "threads": equipment.threads,
        "width": equipment.width,
        "n_workers": os.cpu_count() or 1,
        "checkpoints": Checkpoints(_place(equipment), every_seconds=equipment.checkpoint_seconds),
    }
    found: dict[str, Runner] = {"train": TrainRunner(**options, data_root=equipment.data_root)}
    if equipment.allow:
        found["task"] = TaskRunner(**options, allow=equipment.allow, folders=equipment.folders)
    return options["device"], found


def _place(equipment: Equipment) -> str:
    return equipment.checkpoints or default_folder()
