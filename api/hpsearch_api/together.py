"""Calls that come while others are being answered, answered together: one thread, one transaction, one wait for disk.

A thread for each call costs more than most calls of workers do, and threads of one process take turns at computing
anyway. A call that comes alone is begun at once; what comes meanwhile is the next batch. So nothing waits for a batch
to fill, and the more come, the less each costs. What a database in this process does at once needs no thread at all.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from hpsearch.at_once import at_once
from hpsearch.errors import StoreError, WouldWait

Q = TypeVar("Q")
A = TypeVar("A")
Answering = Callable[[Sequence[Q]], Sequence[A | Exception]]


@dataclass(frozen=True, slots=True)
class _Call(Generic[Q, A]):
    """A call that waits for its answer."""

    call: Q
    answer: asyncio.Future[A]
    context: contextvars.Context


Batch = list[_Call[Q, A]]

MOST = 128
"""Calls answered together, unless they cost next to nothing: so many wait for the last of them."""
SLOW_SECONDS = 0.1
"""A batch that takes longer, such as one that ends a stage, lets the next begin beside it."""
THREADS = 8
"""Batches under way at most."""


def _never(calls: Sequence[object]) -> bool:
    """None of them."""
    del calls
    return False


class Together(Generic[Q, A]):
    """A function of many calls as a coroutine of one. Its calls come from one event loop.

    Args:
        answer: calls → the answer to each, or its error. It runs in a thread. Where it raises an error, that is no
            StoreError, and had several calls, it is called again with each alone: repeating a call must be harmless.
        is_small: whether calls may take no longer than waking a thread does: then ``answer`` is tried without one,
            :func:`~hpsearch.at_once.at_once`, and called again in a thread if it would wait.
        name: of its threads.
        most: calls answered together.
    """

    def __init__(
        self, answer: Answering[Q, A], *, name: str, most: int = MOST, is_small: Callable[[Sequence[Q]], bool] = _never
    ) -> None:
        self._answer = answer
        self._is_small = is_small
        self._most = most
        self._name = name
        self._waiting: deque[_Call[Q, A]] = deque()
        self._is_due = False
        self._quick: object | None = None
        self._n_under_way = self._n_threads = 0
        self._works: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def __call__(self, call: Q) -> A:
        """The answer to one call. Raises its error."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(call, answer, contextvars.copy_context()))
        self._begin_soon()
        return await answer

    def close(self) -> None:
        """Let the threads end once they have done what is under way; the next call starts others."""
        for _ in range(self._n_threads):
            self._works.put(None)
        self._n_threads = 0

    def _begin_soon(self) -> None:
        """Begin a batch when all that came in this turn of the loop is there."""
        if self._waiting and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Begin a batch of what waits, unless one is under way that is not slow."""
        self._is_due = False
        if self._quick is not None:
            return
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
        # What is logged of a call that is answered alone has its request's id.
        context = batch[0].context if len(batch) == 1 else contextvars.Context()
        calls = [each.call for each in batch]
        if not self._is_small(calls):
            self._hand_over(batch, calls, context)
            return
        try:
            outcomes = context.run(self._outcomes_at_once, calls)
        except WouldWait:
            self._hand_over(batch, calls, context)
        else:
            _tell(batch, outcomes)
            self._begin_soon()

    def _hand_over(self, batch: Batch[Q, A], calls: Sequence[Q], context: contextvars.Context) -> None:
        """Have a thread answer a batch."""
        loop = asyncio.get_running_loop()
        self._quick = batch
        slow = loop.call_later(SLOW_SECONDS, self._leave, batch)

        def work() -> None:
            outcomes = context.run(self._outcomes, calls)
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
        _tell(batch, outcomes)

    def _leave(self, batch: object) -> None:
        """Let the next batch begin."""
        if self._quick is batch:
            self._quick = None
            self._begin_soon()

    def _outcomes_at_once(self, calls: Sequence[Q]) -> list[A | Exception]:
        with at_once():
            return self._outcomes(calls)

    def _outcomes(self, calls: Sequence[Q]) -> list[A | Exception]:
        try:
            return list(self._answer(calls))
        except WouldWait:
            raise
        except StoreError as error:  # one after the other they would wait for the store as often
            return [error] * len(calls)
        except Exception as error:
            if len(calls) == 1:
                return [error]
            return [self._outcomes([call])[0] for call in calls]


def _tell(batch: Batch[Q, A], outcomes: Sequence[A | Exception]) -> None:
    for each, outcome in zip(batch, outcomes, strict=True):
        if each.answer.done():  # its client has gone
            continue
        if isinstance(outcome, Exception):
            each.answer.set_exception(outcome)
        else:
            each.answer.set_result(outcome)
