"""One server per SQLite file: a lock of the operating system beside it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hpsearch.errors import StoreInUse, StoreUnreachable


def hold(path: Path, shown: str) -> Callable[[], None]:
    """Take the lock of a SQLite file until the function returned is called, or this process is gone.

    The lock is ``<file>.lock``; the holder's process id stands in ``<file>-holder`` for whoever finds it taken.

    Raises:
        StoreInUse: another holder has it.
        StoreUnreachable: the folder cannot be written.
    """
    path = path.absolute()
    holder = path.with_name(path.name + "-holder")
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=0, thread_local=False)
    try:
        lock.acquire()
        holder.write_text(f"{os.getpid()}\n")
    except Timeout:
        raise StoreInUse(str(path), _read(holder)) from None
    except OSError as error:
        lock.release()
        reason = f"its lock cannot be taken in {path.parent} ({error.strerror or error})"
        raise StoreUnreachable(shown, reason) from error

    def release() -> None:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()

    return release


def _read(holder: Path) -> str:
    try:
        return f" (process {int(holder.read_text())})"
    except (OSError, ValueError):
        return ""
