"""How long the server waits for clients that say nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as _Protocol
else:
    _Protocol = AutoHTTPProtocol


MAX_HEAD = 64 * 2**10
"""Bytes of a request's head; one with more, or with more than that at once beyond it, is not answered."""


def patient_protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP protocol that closes a connection whose request has no whole head after so many seconds.

    uvicorn itself waits for a head without end, and with httptools takes one of any size, so that clients that send a
    byte now and then could take every connection that the process may open, and one that never ends all memory.
    """

    class PatientProtocol(_Protocol):
        _giving_up: asyncio.TimerHandle | None = None
        _head_size = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._give_up_later()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._has_head():
                self._head_size = 0
                self._stop_giving_up()
                return
            if self._giving_up is None:
                self._give_up_later()
            if self.cycle is None or not self.cycle.more_body:  # else it is a body that was answered before its end
                self._head_size += len(data)
                if self._head_size > MAX_HEAD:
                    self._give_up()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_giving_up()
            super().connection_lost(exc)

        def _has_head(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _give_up_later(self) -> None:
            self._giving_up = self.loop.call_later(header_seconds, self._give_up)

        def _stop_giving_up(self) -> None:
            if self._giving_up is not None:
                self._giving_up.cancel()
                self._giving_up = None

        def _give_up(self) -> None:
            self._stop_giving_up()
            if not self._has_head() and not self.transport.is_closing():
                self.transport.close()

    return PatientProtocol
