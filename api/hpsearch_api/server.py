"""A server process: its socket, its store, and an orderly end."""

from __future__ import annotations

import errno
import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import uvicorn

from hpsearch.coordinator import Coordinator
from hpsearch.errors import HpsearchError, InvalidInput
from hpsearch_api.app import create_app
from hpsearch_storage import open_store

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5
"""How long requests under way may take once the server is told to stop."""


def listen(host: str, port: int, *, token: str | None = None) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        InvalidInput: the address is in use, forbidden, or none of this machine; or not loopback: without tokens
            the server answers on this machine only.
    """
    if token is None and not _is_loopback(host):
        raise InvalidInput(
            f"--host {host} would open the server to the network without a token: set HPSEARCH_TOKEN, here and for "
            "clients and workers, or use 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise InvalidInput(
                f"port {port} is in use: another server may be running; give --port another number, 0 for any"
            ) from None
        raise InvalidInput(f"{host}:{port} cannot be listened on: {error}") from None
    listener.listen(2048)
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """uvicorn, which tells event streams and long polls to end before it waits for requests under way."""

    def __init__(self, coordinator: Coordinator, token: str | None = None) -> None:
        self._app = create_app(coordinator, token=token)
        super().__init__(
            uvicorn.Config(
                self._app,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=DRAIN_SECONDS,
                server_header=False,
                timeout_keep_alive=75,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.changes.close()
        await super().shutdown(sockets)


def url_of(listener: socket.socket) -> str:
    """The base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    store_url: str,
    listener: socket.socket,
    *,
    token: str | None,
    lease_seconds: float,
    on_ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is called once the store is open and the socket listens.

    Raises:
        StoreError: the store cannot be opened; nothing was served.
    """
    store = open_store(store_url, exclusive=True)
    try:
        on_ready()
        coordinator = Coordinator(store, lease_ttl=timedelta(seconds=lease_seconds))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stopped)
        _Server(coordinator, token).run(sockets=[listener])
    finally:
        store.close()


def _stopped(number: int, frame: FrameType | None) -> None:
    """Take the signal that uvicorn raises again after its orderly end; what follows the server still runs."""


@contextmanager
def serving(store_url: str, listener: socket.socket) -> Iterator[str]:
    """A server in a thread of this process, for as long as the context lasts; gives its URL.

    Raises:
        StoreError: the store cannot be opened.
        HpsearchError: the server did not start.
    """
    store = open_store(store_url, exclusive=True)
    try:
        server = _Server(Coordinator(store))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise HpsearchError("the server did not start; its log says why")
            thread.join(0.01)
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(DRAIN_SECONDS + 5)
    finally:
        store.close()
