"""Wakes whoever waits for a change: long polls and event streams."""

from __future__ import annotations

import asyncio


class Changes:
    """A bell that any thread may ring and any number of coroutines may wait for.

    Take the :meth:`bell` first, then look whether there is something to do, then :meth:`wait` for that bell: a change
    between the look and the wait is not missed. Other servers on the same store cannot ring, so whoever waits looks
    again after :data:`LOOK_AGAIN` seconds.
    """

    LOOK_AGAIN = 1.0

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell = asyncio.Event()
        self.draining = False
        """The server is about to stop; it answers still."""
        self.closing = False

    def start(self) -> None:
        """Bind to the running loop, again too after an end."""
        self.draining = self.closing = False
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        """Wake all that wait, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._swing)

    def close(self) -> None:
        """Wake all that wait, and tell them to end."""
        self.draining = True
        self.closing = True
        self.ring()

    def bell(self) -> asyncio.Event:
        """The bell that the next ring sets."""
        return self._bell

    def _swing(self) -> None:
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    async def wait(self, bell: asyncio.Event, seconds: float) -> None:
        """Return when the bell is rung, or after so many seconds, at most :data:`LOOK_AGAIN`."""
        try:
            await asyncio.wait_for(bell.wait(), min(seconds, self.LOOK_AGAIN))
        except TimeoutError:
            return
