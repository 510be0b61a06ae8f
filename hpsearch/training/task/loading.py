"""The user's class, from its entry point."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hpsearch.document import unknown
from hpsearch.errors import DataError
from hpsearch.space import Params
from hpsearch.training.streams import Purpose, torch_stream

log = logging.getLogger(__name__)

LONGEST_REASON = 300
"""Characters of an error in the user's code that are passed on."""


class Task:
    """The user's object, every call of which turns an error in the user's code into a DataError.

    Made by :func:`load_task`.

    Attributes:
        entrypoint: ``module:Class``.
        loss: the task's own, ``loss(outputs, targets)`` → mean over the samples; None without.
        metrics: the task's own, ``metrics(outputs, targets)`` → name → number; None without.
    """

    def __init__(self, entrypoint: str, instance: Any) -> None:
        self.entrypoint = entrypoint
        self.loss: Callable[[Any, torch.Tensor], torch.Tensor] | None = getattr(instance, "loss", None)
        self.metrics: Callable[[Any, torch.Tensor], Any] | None = getattr(instance, "metrics", None)
        self._instance = instance
        self._said: set[str] = set()

    def data(self, seed: int) -> Any:
        """What ``data()`` returns, with torch's random numbers by ``seed``."""
        with user_code(f"{self.entrypoint}: data()"), seeded(seed, Purpose.SPLIT):
            return self._instance.data()

    def model(self, params: Params, seed: int) -> torch.nn.Module:
        """A new module, its weights drawn from ``seed``.

        Raises:
            DataError: the user's code raises, or returns no module.
        """
        with user_code(f"{self.entrypoint}: model({_short(dict(params))})"), seeded(seed, Purpose.INITIALISATION):
            module = self._instance.model(dict(params))
        if not isinstance(module, torch.nn.Module):
            raise DataError(f"{self.entrypoint}: model(params) returns {type(module).__name__}, and not a nn.Module")
        return module

    @property
    def digest(self) -> str:
        """Of the source of the module that the class is from; empty where that cannot be read."""
        try:
            source = inspect.getsource(sys.modules[type(self._instance).__module__])
        except (OSError, TypeError, KeyError):
            return ""
        return hashlib.sha256(source.encode()).hexdigest()

    def say(self, topic: str, text: str) -> None:
        """Log what the user should know, once per topic."""
        if topic not in self._said:
            self._said.add(topic)
            log.warning("%s: %s", self.entrypoint, text)


def load_task(entrypoint: str, folders: Sequence[str | Path] = ()) -> Task:
    """Import a class and make the task of it.

    Args:
        entrypoint: ``module:Class``.
        folders: where modules are looked for, beside the working directory and what is installed; they stay first on
            Python's path, as the module may import from there later.

    Raises:
        DataError: there is no such module or class, it lacks a method, or its code raises.
    """
    places = list(dict.fromkeys([*(str(Path(folder).resolve()) for folder in folders), os.getcwd()]))
    sys.path[:] = [*places, *(path for path in sys.path if path not in places)]
    module_name, class_name = entrypoint.split(":")
    importlib.invalidate_caches()
    try:
        with user_code(f"importing {module_name}"):
            module = importlib.import_module(module_name)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{module_name}.".startswith(f"{cause.name}."):
            raise DataError(
                f"there is no module {cause.name!r} for the entry point {entrypoint} (looked in {', '.join(places)} "
                "and in what is installed): start the worker in its folder, or give the folder with --path"
            ) from None
        raise
    if not isinstance(made := getattr(module, class_name, None), type):
        known = sorted(name for name, value in vars(module).items() if isinstance(value, type))
        raise DataError(f"{entrypoint}: {unknown(class_name, known, what='class')}")
    for method in ("data", "model"):
        if not callable(getattr(made, method, None)):
            what = "data(self)" if method == "data" else "model(self, params)"
            raise DataError(f"the class {entrypoint} has no method {what}: a task needs data and model")
    with user_code(f"{entrypoint}: making it"):
        return Task(entrypoint, made())


@contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Raise DataError for whatever the user's code raises, with a short reason: what, where, and the line."""
    try:
        yield
    except (DataError, torch.OutOfMemoryError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{doing} failed: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """One line: type, text, and the place in the file of the user that the error came from."""
    text = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    ours, installed = str(Path(__file__).parents[2]), f"{os.sep}site-packages{os.sep}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<", os.path.dirname(os.__file__))) and installed not in frame.filename
    ]
    at = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return _short(text, quote=False) + at


def _short(value: object, *, quote: bool = True) -> str:
    text = repr(value) if quote else str(value)
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


@contextmanager
def seeded(seed: int, purpose: Purpose, *path: int) -> Iterator[None]:
    """Torch's own random numbers by a seed, within; what was before is restored, on every device."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(torch_stream(seed, purpose, *path).initial_seed())
        yield
