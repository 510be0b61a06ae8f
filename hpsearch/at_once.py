"""What is done at once or not at all.

An event loop does itself what takes no longer than waking a thread would, and hands over the rest. It cannot know
before which it is; so it begins, and whoever comes to something that takes time says so. What was done by then stands:
whoever is called like this can be called again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

from hpsearch.errors import WouldWait

_must_not_wait: ContextVar[bool] = ContextVar("must_not_wait", default=False)


@contextmanager
def at_once() -> Iterator[None]:
    """What is called inside must not wait: it raises WouldWait rather than take its time."""
    before = _must_not_wait.set(True)
    try:
        yield
    finally:
        _must_not_wait.reset(before)


def is_at_once() -> bool:
    """Whether the caller must not wait."""
    return _must_not_wait.get()


def takes_time() -> None:
    """What follows may take its time. Raises WouldWait if the caller must not wait."""
    if _must_not_wait.get():
        raise WouldWait


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """Hold a lock that others may hold while they take their time. Raises WouldWait if the caller must not wait."""
    if not lock.acquire(blocking=not _must_not_wait.get()):
        raise WouldWait
    try:
        yield
    finally:
        lock.release()
