"""Processes of the user's: each in a session of its own, with limits, and never left behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CHUNK = 2**16
TICK_SECONDS = 0.1
"""How often a process is looked at that says nothing."""

_GUARD = """
import os, signal, sys, time
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
def tell(number):
    for group in groups:
        try:
            os.killpg(group, number)
        except OSError:
            pass
tell(signal.SIGTERM)
if groups:
    time.sleep(5)
tell(signal.SIGKILL)
"""


class Guard:
    """Ends what this worker started when the worker itself is gone, even by SIGKILL: a small process that waits for it.

    May be used from one thread.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, group: int) -> None:
        """Watch over a process group."""
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """It has ended."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-I", "-S", "-c", _GUARD]
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, bufsize=0
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())

    def close(self) -> None:
        """Let go of the process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process = None


class Program:
    """A running process, whose output is read as it comes.

    Args:
        argv: the program and its arguments.
        guard: who ends it if this process is gone.
        cwd: where it runs.
        env: its whole environment.
        connection: a socket to read beside its output, and the end of it that the process is given.
        stop_all: whether SIGTERM goes to all processes of its session, or to the first alone; SIGKILL goes to all.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        guard: Guard,
        cwd: str | Path,
        env: Mapping[str, str],
        connection: tuple[socket.socket, socket.socket] | None = None,
        stop_all: bool = True,
    ) -> None:
        self._guard = guard
        self._stop_all = stop_all
        self._process = subprocess.Popen(  # noqa: S603 - a list, never a shell
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=() if connection is None else (connection[1].fileno(),),
        )
        self.group = self._process.pid
        guard.add(self.group)
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ, "out")
        self._selector.register(self._process.stderr, selectors.EVENT_READ, "err")
        if connection is not None:
            self._selector.register(connection[0], selectors.EVENT_READ, "connection")
        self._kill_at: float | None = None

    @property
    def status(self) -> int | None:
        """Exit status, the negative number of the signal that ended it, None while it runs."""
        return self._process.poll()

    @property
    def is_being_stopped(self) -> bool:
        """Whether it has been told to stop."""
        return self._kill_at is not None

    def read(self, seconds: float = TICK_SECONDS) -> dict[str, bytes]:
        """What has come by stream (``out``, ``err``, ``connection``), waiting so long for the first of it."""
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._signal(signal.SIGKILL)
        found: dict[str, bytes] = {}
        if not self._selector.get_map():  # it closed its output: there is only its end to wait for
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return found
        for key, _ in self._selector.select(seconds):
            try:
                data = os.read(key.fd, CHUNK)
            except OSError:
                data = b""
            if data:
                found[key.data] = data
            else:
                self._selector.unregister(key.fileobj)
        return found

    def rest(self) -> dict[str, bytes]:
        """What has come and was not read yet; if it has ended, what it left behind ends first."""
        if self.status is not None:
            self._signal(signal.SIGKILL)
        found: dict[str, bytes] = {}
        while more := self.read(0):
            for name, data in more.items():
                found[name] = found.get(name, b"") + data
        return found

    def stop(self, grace_seconds: float) -> None:
        """Ask it to stop by SIGTERM; :meth:`read` ends it by SIGKILL when its time is over. Again: perhaps sooner."""
        kill_at = time.monotonic() + grace_seconds
        if self._kill_at is None:
            self._signal(signal.SIGTERM, to_all=self._stop_all)
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def spare(self) -> None:
        """It has stopped what it did: it need not end."""
        self._kill_at = None

    def close(self) -> None:
        """End it, and whatever it left behind in its session."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._guard.remove(self.group)
        self._selector.close()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _signal(self, number: signal.Signals, *, to_all: bool = True) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if to_all:
                os.killpg(self.group, number)
            else:
                self._process.send_signal(number)

    def memory(self) -> int:
        """Resident memory of all processes of its session in bytes; 0 where there is no ``/proc``."""
        total = 0
        page = os.sysconf("SC_PAGE_SIZE")
        for entry in _processes():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = Path(entry, "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == self.group:  # the session
                    total += int(fields[21]) * page
        return total


def _processes() -> list[str]:
    try:
        return [entry.path for entry in os.scandir("/proc") if entry.name.isdigit()]
    except OSError:
        return []


class Tail:
    """The last bytes of an output.

    Args:
        size: how many, at least.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._bytes = bytearray()
        self._n_dropped = 0
        self.n_seen = 0
        """Bytes that came so far."""

    def add(self, data: bytes) -> None:
        """Take more of it."""
        self.n_seen += len(data)
        self._bytes += data
        if len(self._bytes) > 2 * self._size:
            self._n_dropped += len(self._bytes) - self._size
            del self._bytes[: -self._size]

    def text(self) -> str:
        """As text that every store can hold, beginning with what was left out, if anything was."""
        dropped, kept = self._n_dropped, self._bytes
        if len(kept) > self._size:
            dropped, kept = dropped + len(kept) - self._size, kept[-self._size :]
        head = f"… the first {dropped} bytes are left out …\n" if dropped else ""
        return head + kept.decode(errors="replace").replace("\0", "\ufffd")


def said(status: int) -> str:
    """How a process ended that nobody asked to."""
    if status >= 0:
        return f"it exited with status {status}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-status).name
        hint = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return f"it was ended by {name}{hint}"
    return f"it was ended by signal {-status}"
