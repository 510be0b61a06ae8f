"""Worker processes on this machine: started, watched, started anew when they die."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
PROVEN_SECONDS = 60.0
"""A worker that lived so long is started anew without a pause growing."""
STOP_SECONDS = 20.0
"""How long workers get to hand over before they are killed."""


def threads_per_worker(workers: int) -> int:
    """Threads for each of so many workers, so that they and the server do not fight over cores: at least 1."""
    return max(1, (os.cpu_count() or 1) // (workers + 1))


@dataclass
class _Slot:
    name: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause: float = FIRST_PAUSE
    due_at: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps ``workers`` worker processes running against a server.

    Args:
        server: its URL.
        workers: how many.
        arguments: more arguments for ``hpsearch worker``.
    """

    def __init__(self, server: str, workers: int, arguments: list[str] | None = None) -> None:
        self._arguments = ["--server", server, "--threads", str(threads_per_worker(workers)), *(arguments or [])]
        prefix = f"{platform.node()}-{os.getpid()}"
        self._slots = [_Slot(f"{prefix}/{i}") for i in range(workers)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the workers and watch them."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the workers to stop, wait, and kill those that do not."""
        self._stop.set()
        self._thread.join()
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker %d does not stop: killing it; its trials go to another", process.pid)
                process.kill()
                process.wait()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        return [s.process.pid for s in self._slots if s.process is not None and s.process.poll() is None]

    def _watch(self) -> None:
        while not self._stop.is_set():
            for slot in self._slots:
                self._look_after(slot)
            self._stop.wait(0.2)

    def _look_after(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.process is not None:
            code = slot.process.poll()
            if code is None:
                return
            slot.pause = FIRST_PAUSE if now - slot.started_at > PROVEN_SECONDS else min(2 * slot.pause, LONGEST_PAUSE)
            slot.process, slot.due_at = None, now + slot.pause
            log.warning("worker %s ended with %d; starting it again in %.0f s", slot.name, code, slot.pause)
        if now >= slot.due_at:
            slot.process, slot.started_at = self._spawn(slot.name), now

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hpsearch", "worker", "--name", name, *self._arguments]
        # a session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then asks the workers
        environment = {**os.environ, "HPSEARCH_PARENT": str(os.getpid())}
        return subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL)  # noqa: S603
