"""The process that calls the user's Python objective, warm between trials. :mod:`hpsearch.worker.python` starts it.

It reads and writes lines of JSON on a socket, so that nothing the user prints gets in between:

    → {"entrypoint", "folders"}     ← {"fault": why it cannot be used, or null}
    → {"trial", "metric"}           ← {"step", "metrics"} … each answered → {"stop": why, or null}
                                    ← {"value", "metrics"}, {"stopped": why} or {"fault": why} at the end
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import linecache
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpsearch.errors import TrialStopped
from hpsearch.running_trial import RunningTrial, returned

LONGEST_FAULT = 1500
SHOWN_FRAMES = 6


class Child:
    """One conversation with the worker.

    Args:
        connection: to the worker.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("r", encoding="utf-8")
        self._connection = connection
        self._objective: Callable[[RunningTrial], Any] | None = None
        self._told: str | None = None
        signal.signal(signal.SIGTERM, self._on_signal)

    def serve(self) -> None:
        """Answer until the worker is gone."""
        while line := self._lines.readline():
            message = json.loads(line)
            self._send(self._load(**message) if "entrypoint" in message else self._run(**message))

    def _on_signal(self, number: int, frame: Any) -> None:
        del number, frame
        self._told = "the worker asks the trial to stop"

    def _send(self, message: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _load(self, entrypoint: str, folders: list[str]) -> dict[str, Any]:
        sys.path[:0] = folders
        try:
            self._objective = load(entrypoint, folders)
        except Unusable as error:
            return {"fault": str(error)}
        finally:
            _flush()
        return {"fault": None}

    def _run(self, trial: dict[str, Any], metric: str) -> dict[str, Any]:
        assert self._objective is not None
        self._told = None
        seed(trial["seed"])
        running = RunningTrial(
            **trial | {"checkpoint_dir": Path(trial["checkpoint_dir"])}, _send=self._report, _told=lambda: self._told
        )
        try:
            value, others = returned(self._objective(running), metric)
        except TrialStopped as stopped:
            return {"stopped": str(stopped)}
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the user's code may do anything
            traceback.print_exc()
            return {"fault": shortened(error)}
        finally:
            _flush()
        return {"value": value, "metrics": others}

    def _report(self, step: int, metrics: dict[str, float]) -> str | None:
        self._send({"step": step, "metrics": metrics})
        line = self._lines.readline()
        if not line:
            os._exit(1)  # the worker is gone: nobody wants the trial
        stop: str | None = json.loads(line)["stop"]
        return stop or self._told


class Unusable(Exception):
    """The entry point cannot be called; the text says why."""


def load(entrypoint: str, folders: list[str]) -> Callable[[RunningTrial], Any]:
    """The function of an entry point, or an object of its class. Raises Unusable."""
    module_name, name = entrypoint.split(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise Unusable(
                f"there is no module {missing!r} for the entry point {entrypoint} (looked in {', '.join(folders)} and "
                "in what is installed): start the worker in its folder, or give the folder with --path"
            ) from None
        traceback.print_exc()
        raise Unusable(f"importing {module_name} failed; mend it and start again: {shortened(error)}") from None
    found = getattr(module, name, None)
    if isinstance(found, type):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            raise Unusable(f"{entrypoint}: making it without arguments failed: {shortened(error)}") from None
    if not callable(found):
        from hpsearch.document import unknown  # pydantic takes longer to load than all the rest

        known = sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_")
        raise Unusable(f"{entrypoint}: {unknown(name, known, what='function or class')}")
    objective: Callable[[RunningTrial], Any] = found
    _check_call(entrypoint, objective)
    return objective


def _check_call(entrypoint: str, objective: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(objective)
    except (TypeError, ValueError):
        return  # not written in Python
    try:
        signature.bind(None)
    except TypeError as error:
        raise Unusable(
            f"{entrypoint}{signature} cannot be called as objective(trial) ({error}): give it one parameter"
        ) from None


def seed(number: int) -> None:
    """Python's generator, and those of numpy and torch where they are loaded, by the trial's seed."""
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(number % 2**63)


def shortened(error: BaseException) -> str:
    """Type, text and the user's frames, outermost first, in :data:`LONGEST_FAULT` characters."""
    ours = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<frozen")) and f"{os.sep}importlib{os.sep}" not in frame.filename
    ]
    linecache.checkcache()
    lines = [
        f"{os.path.basename(frame.filename)}, line {frame.lineno}, in {frame.name}: {(frame.line or '')[:80]}"
        for frame in frames
    ]
    if len(lines) > SHOWN_FRAMES:
        lines = [*lines[:2], f"… {len(lines) - SHOWN_FRAMES} more …", *lines[2 - SHOWN_FRAMES :]]
    text = "".join(traceback.format_exception_only(error)).strip()
    where = "".join(f"\n  {line}" for line in lines)
    return text[: max(100, LONGEST_FAULT - len(where))] + where[:LONGEST_FAULT]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the user's code closed it
            stream.flush()


def main() -> None:
    """Serve on the file descriptor that the command line names."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    Child(connection).serve()


if __name__ == "__main__":
    main()
