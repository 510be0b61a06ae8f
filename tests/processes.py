"""Real servers and real workers, as processes, for the tests that need them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hpsearch.client import Client, StudyHandle
from hpsearch.http import Connection

T = TypeVar("T")

DIGITS: dict[str, Any] = {
    "name": "digits",
    "objective": {
        "kind": "train",
        "data": {"source": "digits"},
        "model": {"kind": "mlp", "hidden": [32]},
        "batch_size": 100,
    },
    "metric": {"name": "val_accuracy", "direction": "maximize"},
    "space": {
        "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "reg": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    },
    "stages": [{"name": "coarse", "trials": 8, "epochs": 1}, {"name": "fine", "trials": 8, "epochs": 2}],
    "seed": 0,
}


def digits(**changes: Any) -> dict[str, Any]:
    """The study above with some of its keys changed."""
    return {**DIGITS, **changes}


class Process:
    """A process of ours whose output is kept."""

    def __init__(self, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        environment.pop("HPSEARCH_PARENT", None)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "hpsearch", *arguments],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._patience = 5.0

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as output:
            self.lines.extend(output)

    @property
    def output(self) -> str:
        """All of it, once the process has ended; a child that lives on and may write more is waited for once."""
        if self.popen.poll() is not None:
            self._reader.join(self._patience)
            self._patience = 0.0
        return "".join(self.lines)

    def wait_for(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        return eventually(lambda: re.search(pattern, self.output), seconds, lambda: self.output)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20) -> int:
        """Send a signal and return the exit status; a process that does not end fails the test."""
        self.popen.send_signal(number)
        return self.popen.wait(seconds)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


def eventually(look: Callable[[], T | None], seconds: float = 30, explain: Callable[[], object] = lambda: "") -> T:
    """What ``look`` returns once that is true; fails the test if it does not become so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {explain()}")


def finished_events(study: StudyHandle) -> Counter[int]:
    """How often each trial came to an end, by the study's log."""
    counts: Counter[int] = Counter()
    last = study.read()["last_event"]
    for seq, kind, data in study.events():
        if kind == "trial" and data["state"] not in ("queued", "running"):
            counts[data["number"]] += 1
        if seq == last:
            break
    return counts


class House:
    """Starts servers and workers; ends them all at the end of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self.clients: list[Client | Connection] = []

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Process:
        process = Process(*arguments, cwd=self.folder, env=env)
        self.processes.append(process)
        return process

    def serve(self, store: str, *arguments: str, port: int = 0) -> tuple[Process, Client]:
        process = self.run("serve", "--store", store, "--port", str(port), *arguments)
        client = Client(process.wait_for(r"serving (http://\S+)").group(1))
        self.clients.append(client)
        return process, client

    def worker(self, client: Client, name: str, *arguments: str, env: dict[str, str] | None = None) -> Process:
        return self.run("worker", "--server", client.server, "--name", name, *arguments, env=env)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for process in reversed(self.processes):
            process.close()
