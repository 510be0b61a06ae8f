"""Calls that are answered together."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hpsearch.at_once import takes_time
from hpsearch.errors import HpsearchError, InvalidInput, StoreError
from hpsearch.logs import JsonLines, about
from hpsearch_api import together
from hpsearch_api.together import MOST, Together


class Gate:
    """Answers with ten times the call, once it is open; notes what came together."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, calls: Sequence[int]) -> list[int | HpsearchError]:
        self.batches.append(list(calls))
        assert self.open.wait(20)
        return [10 * call for call in calls]


def begin(calls: Together[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    async def one(number: int) -> int:
        return await calls(number)

    return [asyncio.create_task(one(number)) for number in numbers]


def run(main: Coroutine[Any, Any, None]) -> None:
    with ThreadPoolExecutor(1) as thread:  # this one may have a loop, of tests in the browser
        thread.submit(asyncio.run, asyncio.wait_for(main, 20)).result()


def test_what_comes_meanwhile_is_answered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SLOW_SECONDS", 20)

    async def main() -> None:
        gate = Gate()
        calls: Together[int, int] = Together(gate, name="test")
        first = begin(calls, 1)
        await asyncio.sleep(0.05)
        rest = begin(calls, *range(2, MOST + 4))
        await asyncio.sleep(0.05)
        assert gate.batches == [[1]]
        gate.open.set()
        assert await asyncio.gather(*first, *rest) == [10 * n for n in range(1, MOST + 4)]
        assert gate.batches == [[1], list(range(2, MOST + 2)), [MOST + 2, MOST + 3]]
        calls.close()
        assert await calls(5) == 50, "it can be used again"
        calls.close()

    run(main())


def test_nobody_waits_long_for_a_slow_batch() -> None:
    async def main() -> None:
        gate = Gate()
        calls: Together[int, int] = Together(gate, name="test")
        tasks = begin(calls, 1)
        await asyncio.sleep(0.05)
        tasks += begin(calls, 2, 3)
        while len(gate.batches) < 2:
            await asyncio.sleep(0.01)
        assert gate.batches == [[1], [2, 3]]
        assert not any(task.done() for task in tasks)
        gate.open.set()
        assert await asyncio.gather(*tasks) == [10, 20, 30]
        calls.close()

    run(main())


def test_an_error_is_its_own_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SLOW_SECONDS", 20)
    gate = Gate()

    def answer(calls: Sequence[int]) -> list[int | HpsearchError]:
        gate(calls)
        if -1 in calls:
            raise InvalidInput("below zero")
        return [InvalidInput("it is two") if call == 2 else call for call in calls]

    async def main() -> None:
        calls: Together[int, int] = Together(answer, name="test")
        tasks = begin(calls, 0)
        await asyncio.sleep(0.05)
        tasks += begin(calls, 1, -1, 2, 3)
        gone = begin(calls, 4)[0]
        await asyncio.sleep(0.05)
        gone.cancel()
        gate.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(each) for each in found] == ["0", "1", "below zero", "it is two", "3"]
        assert gate.batches == [[0], [1, -1, 2, 3, 4], [1], [-1], [2], [3], [4]]
        calls.close()

    run(main())


def test_a_store_that_fails_is_not_asked_by_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SLOW_SECONDS", 20)
    gate = Gate()

    def answer(calls: Sequence[int]) -> list[int | HpsearchError]:
        gate(calls)
        raise StoreError("it is away")

    async def main() -> None:
        calls: Together[int, int] = Together(answer, name="test")
        tasks = begin(calls, 0)
        await asyncio.sleep(0.05)
        tasks += begin(calls, 1, 2)
        await asyncio.sleep(0.05)
        gate.open.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(each) for each in found] == ["it is away"] * 3
        assert gate.batches == [[0], [1, 2]]
        calls.close()

    run(main())


def test_what_can_be_done_at_once_needs_no_thread() -> None:
    batches: list[tuple[list[int], str]] = []

    def note(calls: Sequence[int]) -> list[int | HpsearchError]:
        batches.append((list(calls), threading.current_thread().name))
        return [InvalidInput("it is two") if call == 2 else 10 * call for call in calls]

    def answer(calls: Sequence[int]) -> list[int | HpsearchError]:
        if 7 in calls:
            takes_time()
        return note(calls)

    async def main() -> None:
        calls: Together[int, int] = Together(answer, name="test", most=3, is_small=lambda some: 9 not in some)
        here = threading.current_thread().name
        found = await asyncio.gather(*begin(calls, 1, 2, 3, 4), return_exceptions=True)
        assert [str(each) for each in found] == ["10", "it is two", "30", "40"]
        assert batches == [([1, 2, 3], here), ([4], here)], "what came in one turn of the loop is of one batch"
        batches.clear()
        assert await asyncio.gather(*begin(calls, 6, 7)) == [60, 70]
        assert batches == [([6, 7], "test-1")]
        batches.clear()
        assert await asyncio.gather(*begin(calls, 8, 9)) == [80, 90]
        assert batches == [([8, 9], "test-1")], "not even tried here"
        calls.close()

    run(main())


class Lines(logging.Handler):
    """Keeps what is logged, as the server writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(JsonLines().format(record)))


def test_what_is_logged_of_a_call_alone_has_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "SLOW_SECONDS", 20)
    gate, lines, log = Gate(), Lines(), logging.getLogger("hpsearch.test")

    def answer(calls: Sequence[int]) -> list[int | HpsearchError]:
        log.warning("called")
        return gate(calls)

    async def main() -> None:
        calls: Together[int, int] = Together(answer, name="test")
        with about(request="r-1"):
            tasks = begin(calls, 1)
            await asyncio.sleep(0.05)
            tasks += begin(calls, 2, 3)
        gate.open.set()
        await asyncio.gather(*tasks)
        calls.close()

    log.addHandler(lines)
    try:
        run(main())
    finally:
        log.removeHandler(lines)
    assert [line.get("request") for line in lines.lines] == ["r-1", None], "two requests have no id in common"
