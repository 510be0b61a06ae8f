"""Event streams: one task reads the logs of all studies that are followed, however many follow them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from fastapi.concurrency import run_in_threadpool

from hpsearch.errors import NotFound, StoreError, TooMany
from hpsearch.store import Store
from hpsearch.study import Event
from hpsearch_api.changes import Changes

log = logging.getLogger(__name__)

PAGE = 500
KEPT = 1000
"""Events of a study that are kept for its followers; who is further behind reads the store."""
PING_SECONDS = 15.0
REST_SECONDS = 0.05
"""Between two looks at the logs, and at least as long as the last one took."""
PING = b": still here\n\n"
RECONNECT = b"retry: 1000\n: the server stops, connect again\n\n"


class _Feed:
    """The newest events of one study, encoded once for all."""

    def __init__(self) -> None:
        self.kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self.read_to: int | None = None  # None: nothing was read yet
        self.n_followers = 0
        self.is_over = False
        self.bell = asyncio.Event()

    def add(self, events: Sequence[Event], *, read_to: int) -> None:
        self.kept.extend((event.seq, encoded(event)) for event in events)
        if events or self.read_to is None:
            self.read_to = read_to
            self.ring()

    def since(self, seen: int) -> list[tuple[int, bytes]] | None:
        """Events after ``seen``; None if they are not all kept."""
        if self.read_to is None:
            return None
        if seen >= self.read_to:
            return []
        if not self.kept or self.kept[0][0] > seen + 1:
            return None
        return [item for item in self.kept if item[0] > seen]

    def ring(self) -> None:
        bell, self.bell = self.bell, asyncio.Event()
        bell.set()


class Feeds:
    """Streams of what happens in studies.

    Args:
        store: whose logs are read.
        changes: rings when there may be something new, and says when the server stops.
        limit: streams that may be open at a time.
        on_number: called with the number of open streams when it changes.
    """

    def __init__(self, store: Store, changes: Changes, *, limit: int, on_number: Callable[[int], None]) -> None:
        self._store = store
        self._changes = changes
        self._limit = limit
        self._on_number = on_number
        self._feeds: dict[int, _Feed] = {}
        self._n_open = 0
        self._reader: asyncio.Task[None] | None = None

    def check_room(self) -> None:
        """Raise TooMany if no more streams may be opened."""
        if self._n_open >= self._limit:
            raise TooMany(f"{self._n_open} event streams are open", self._limit, "streams", retry_seconds=5)

    async def follow(
        self, study_id: int, *, after: int, is_allowed: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """A study's events after one, encoded, until it is deleted, the server stops, or ``is_allowed`` says no."""
        with self._following(study_id) as feed:
            seen, spoke = after, time.monotonic()
            while not self._changes.closing:
                bell = feed.bell
                found = feed.since(seen)
                if found is None:
                    try:
                        events = await run_in_threadpool(self._store.events, study_id, after=seen, limit=PAGE)
                    except NotFound:
                        return
                    found = [(event.seq, encoded(event)) for event in events]
                if found:
                    seen, spoke = found[-1][0], time.monotonic()
                    yield b"".join(text for _, text in found)
                    continue
                if feed.is_over:
                    return
                if time.monotonic() - spoke >= PING_SECONDS:
                    if not await is_allowed():
                        return
                    spoke = time.monotonic()
                    yield PING
                await _wait(bell, PING_SECONDS)
            yield RECONNECT

    def close(self) -> None:
        """Wake all who follow; the server stops."""
        for feed in self._feeds.values():
            feed.ring()

    @contextmanager
    def _following(self, study_id: int) -> Iterator[_Feed]:
        feed = self._feeds.setdefault(study_id, _Feed())
        feed.n_followers += 1
        self._count(1)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        try:
            yield feed
        finally:
            feed.n_followers -= 1
            if not feed.n_followers and self._feeds.get(study_id) is feed:
                del self._feeds[study_id]
            self._count(-1)
            if not self._feeds and self._reader is not None:
                self._reader.cancel()
                self._reader = None

    def _count(self, change: int) -> None:
        self._n_open += change
        self._on_number(self._n_open)

    async def _read(self) -> None:
        """Look at the logs of all studies that are followed, again and again."""
        while not self._changes.closing:
            bell = self._changes.bell()
            started = time.monotonic()
            for study_id, feed in list(self._feeds.items()):
                try:
                    await self._look(study_id, feed)
                except NotFound:
                    feed.is_over = True
                    feed.ring()
                except StoreError as error:
                    log.warning("the store does not answer, event streams wait: %s", error)
                except Exception:
                    log.exception("reading events failed, trying again")
            await asyncio.sleep(max(REST_SECONDS, time.monotonic() - started))
            await self._changes.wait(bell, PING_SECONDS)
        self.close()

    async def _look(self, study_id: int, feed: _Feed) -> None:
        if feed.read_to is None:
            feed.add([], read_to=await run_in_threadpool(self._store.last_event, study_id))
            return
        events = await run_in_threadpool(self._store.events, study_id, after=feed.read_to, limit=PAGE)
        if events:
            feed.add(events, read_to=events[-1].seq)


async def _wait(bell: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await bell.wait()
    except TimeoutError:
        return


def encoded(event: Event) -> bytes:
    """An event as it travels. https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    data = json.dumps({**event.data, "at": event.at.isoformat()})
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n".encode()
