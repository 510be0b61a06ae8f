"""Calls that come while others are being answered, answered together: one thread, one transaction, one wait for disk.

A thread for each call costs more than most calls of workers do, and threads of one process take turns at computing
anyway. A call that comes alone is begun at once; what comes meanwhile is the next batch. So nothing waits for a batch
to fill, and the more come, the less each costs.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from hpsearch.errors import HpsearchError, StoreError

Q = TypeVar("Q")
A = TypeVar("A")
Batch = list[tuple[Q, asyncio.Future[A]]]

MOST = 128
"""Calls answered together, unless they cost next to nothing: so many wait for the last of them."""
SLOW_SECONDS = 0.1
"""A batch that takes longer, such as one that ends a stage, lets the next begin beside it."""
THREADS = 8
"""Batches under way at most."""


class Together(Generic[Q, A]):
    """A function of many calls as a coroutine of one. Its calls come from one event loop.

    Args:
        answer: calls → the answer to each, or its error. It runs in a thread. Where it raises an error, that is no
            StoreError, and had several calls, it is called again with each alone: repeating a call must be harmless.
        name: of its threads.
        most: calls answered together.
    """

    def __init__(
        self, answer: Callable[[Sequence[Q]], Sequence[A | HpsearchError]], *, name: str, most: int = MOST
    ) -> None:
        self._answer = answer
        self._most = most
        self._name = name
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._quick: object | None = None
        self._n_under_way = self._n_threads = 0
        self._works: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def __call__(self, call: Q) -> A:
        """The answer to one call. Raises its error."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, answer))
        self._begin()
        return await answer

    def close(self) -> None:
        """Let the threads end once they have done what is under way; the next call starts others."""
        for _ in range(self._n_threads):
            self._works.put(None)
        self._n_threads = 0

    def _begin(self) -> None:
        """Begin a batch of what waits, unless one is under way that is not slow."""
        if not self._waiting or self._quick is not None:
            return
        loop = asyncio.get_running_loop()
        self._quick = batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
        slow = loop.call_later(SLOW_SECONDS, self._leave, batch)
        # What is logged of a call that is answered alone has its request's id.
        context = contextvars.copy_context() if len(batch) == 1 else contextvars.Context()

        def work() -> None:
            outcomes = context.run(self._outcomes, [call for call, _ in batch])
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._end, batch, outcomes, slow)

        self._n_under_way += 1
        if self._n_threads < min(self._n_under_way, THREADS):
            self._n_threads += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._n_threads}", daemon=True).start()
        self._works.put(work)

    def _run(self) -> None:
        """A thread, which does not keep the process from ending: what is not durable then was not answered."""
        while (work := self._works.get()) is not None:
            work()

    def _end(self, batch: Batch[Q, A], outcomes: Sequence[A | Exception], slow: asyncio.TimerHandle) -> None:
        slow.cancel()
        self._n_under_way -= 1
        self._leave(batch)
        for (_, answer), outcome in zip(batch, outcomes, strict=True):
            if answer.done():  # its client has gone
                continue
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

    def _leave(self, batch: object) -> None:
        """Let the next batch begin."""
        if self._quick is batch:
            self._quick = None
            self._begin()

    def _outcomes(self, calls: Sequence[Q]) -> list[A | Exception]:
        try:
            return list(self._answer(calls))
        except StoreError as error:  # one after the other they would wait for the store as often
            return [error] * len(calls)
        except Exception as error:
            if len(calls) == 1:
                return [error]
            return [self._outcomes([call])[0] for call in calls]
