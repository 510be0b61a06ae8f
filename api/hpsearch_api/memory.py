"""Answers that cost something, kept while they hold."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

SIZE = 256
"""Answers kept; the one that was asked for longest ago goes first."""
PATIENCE = 20.0
"""While a study runs, an answer is worked out anew at most once in so many times the time that it took."""
WORTH_KEEPING = 0.05
"""Seconds: what takes less is always worked out anew when it is out of date."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer, of which version, when it was known and how many seconds of a processor it took."""

    version: Hashable
    value: Any
    at: float
    cost: float


class Memory:
    """Remembers answers by key and version. Every method may be called from any thread; one works an answer out."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, work: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._work = work  # waiting for others costs nothing
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._makers: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, version: Hashable, make: Callable[[], T], *, patient: bool = False) -> T:
        """The answer of this version; with ``patient`` an earlier one if that took long and is not old yet."""
        if (kept := self._good(key, version, patient=patient)) is None:
            with self._maker(key):
                if (kept := self._good(key, version, patient=patient)) is None:
                    begun = self._work()
                    value = make()
                    kept = self._keep(key, Kept(version, value, self._clock(), self._work() - begun))
        answer: T = kept.value
        return answer

    def has(self, key: Hashable) -> bool:
        """Whether some version of the answer is there."""
        with self._lock:
            return key in self._kept

    def _good(self, key: Hashable, version: Hashable, *, patient: bool) -> Kept | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
            waits = patient and kept.cost > WORTH_KEEPING and self._clock() - kept.at < PATIENCE * kept.cost
            return kept if kept.version == version or waits else None

    def _maker(self, key: Hashable) -> threading.Lock:
        with self._lock:
            return self._makers.setdefault(key, threading.Lock())

    def _keep(self, key: Hashable, kept: Kept) -> Kept:
        with self._lock:
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > SIZE:
                gone, _ = self._kept.popitem(last=False)
                self._makers.pop(gone, None)
            return kept
