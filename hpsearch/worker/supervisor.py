"""Worker processes on this machine: started, watched, started anew when they die."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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


def find_devices(text: str) -> list[str]:
    """What ``--devices`` names; ``auto`` is every GPU, else the CPU.

    torch is asked only where there may be a GPU, and in a process of its own, for it takes seconds to load.
    """
    if text != "auto":
        return [name.strip() for name in text.split(",") if name.strip()] or ["cpu"]
    if not Path("/dev/nvidiactl").exists() and sys.platform != "darwin":
        return ["cpu"]
    code = "from hpsearch.training.devices import devices; print(*devices())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)  # noqa: S603
    return asked.stdout.split() or ["cpu"]


@dataclass
class _Slot:
    name: str
    device: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    pause: float = FIRST_PAUSE
    due_at: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps ``workers`` worker processes running against a server.

    Args:
        server: its URL.
        workers: how many; None is one per device, or per core if there is only the CPU.
        arguments: more arguments for ``hpsearch worker``.
        devices: given to the workers in turn.
        environment: more variables for them.
    """

    def __init__(
        self,
        server: str,
        workers: int | None,
        arguments: list[str] | None = None,
        *,
        devices: list[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        cores = os.cpu_count() or 1
        workers = workers or (cores if devices == ["cpu"] else len(devices))
        self._arguments = ["--server", server, "--threads", str(threads_per_worker(workers)), *(arguments or [])]
        self._environment = {**os.environ, **(environment or {}), "HPSEARCH_PARENT": str(os.getpid())}
        prefix = f"{platform.node()}-{os.getpid()}"
        self._slots = [_Slot(f"{prefix}/{i}", devices[i % len(devices)]) for i in range(workers)]
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
            slot.process, slot.started_at = self._spawn(slot), now

    def _spawn(self, slot: _Slot) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hpsearch", "worker", "--name", slot.name, "--device", slot.device]
        command += self._arguments
        # a session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then asks the workers
        return subprocess.Popen(command, env=self._environment, start_new_session=True, stdin=subprocess.DEVNULL)  # noqa: S603
