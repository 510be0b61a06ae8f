"""A server process: its socket, its store, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import secrets
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from hpsearch.coordinator import Coordinator
from hpsearch.errors import HpsearchError, InvalidInput
from hpsearch_api.app import create_app
from hpsearch_api.patience import patient_protocol
from hpsearch_api.security import Limits
from hpsearch_storage import SqlStore, open_store

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5
"""How long requests under way may take once the server is told to stop."""


@dataclass(frozen=True)
class Settings:
    """How a server meets its clients.

    Attributes:
        token: one that may do everything, beside those of the store.
        worker_token: for workers of this server; made anew for every process.
        asks: False asks for no token, although the store has some; for the user of this machine alone.
        limits: what clients may ask for.
        tls: files of a certificate chain and its key, PEM; None serves HTTP.
        trusted_proxies: addresses or networks whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed.
        drain_seconds: so long ``/readyz`` says no before the server stops answering.
    """

    token: str | None = None
    worker_token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    asks: bool = True
    limits: Limits = field(default_factory=Limits)
    tls: tuple[Path, Path] | None = None
    trusted_proxies: Sequence[str] = ()
    drain_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Raise InvalidInput for an empty token, a proxy that is no address, or a certificate that cannot be used."""
        if self.token is not None and not self.token.strip():
            raise InvalidInput("the token is empty: anybody could give it; make one with hpsearch token create")
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise InvalidInput(f"--trusted-proxy {proxy}: {error}; give an address or a network") from None
        if self.tls is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self.tls)
            except (OSError, ssl.SSLError) as error:
                files = " and ".join(map(str, self.tls))
                raise InvalidInput(f"{files} are no certificate with its key: {error}") from None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        InvalidInput: the address is in use, forbidden, or none of this machine.
    """
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


def check_exposure(listener: socket.socket, store: SqlStore, token: str | None) -> None:
    """Raise InvalidInput if others than this machine could reach a server that has no token."""
    host = listener.getsockname()[0]
    if token is None and not ipaddress.ip_address(host).is_loopback and not store.tokens.any():
        raise InvalidInput(
            f"--host {host} would open the server to the network without a token: make one with hpsearch token create, "
            "or set HPSEARCH_TOKEN, here and for clients and workers; or use 127.0.0.1"
        )


class _Server(uvicorn.Server):
    """uvicorn, which tells event streams and long polls to end before it waits for requests under way."""

    def __init__(self, coordinator: Coordinator, settings: Settings) -> None:
        self._app = create_app(
            coordinator,
            token=settings.token,
            worker_token=settings.worker_token,
            asks=settings.asks,
            limits=settings.limits,
        )
        self._drain_seconds = settings.drain_seconds
        super().__init__(uvicorn.Config(self._app, **_options(settings)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        changes = self._app.state.changes
        changes.draining = True
        if self._drain_seconds and not self.force_exit:
            log.info("stopping in %g s", self._drain_seconds)
            await asyncio.sleep(self._drain_seconds)
        changes.close()
        self._app.state.feeds.close()
        await super().shutdown(sockets)


def _options(settings: Settings) -> dict[str, Any]:
    certificate, key = settings.tls or (None, None)
    return {
        "http": patient_protocol(settings.limits.header_seconds),
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": DRAIN_SECONDS,
        "server_header": False,
        "timeout_keep_alive": 75,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "ssl_certfile": certificate,
        "ssl_keyfile": key,
    }


def url_of(listener: socket.socket, *, secure: bool = False) -> str:
    """The base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def serve(
    store_url: str,
    listener: socket.socket,
    settings: Settings,
    *,
    lease_seconds: float,
    on_ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT; ``on_ready`` is called once the store is open and the socket listens.

    Raises:
        StoreError: the store cannot be opened; nothing was served.
        InvalidInput: there is no token, and the socket is reached from elsewhere.
    """
    store = open_store(store_url, exclusive=True)
    try:
        check_exposure(listener, store, settings.token)
        on_ready()
        coordinator = Coordinator(store, lease_ttl=timedelta(seconds=lease_seconds))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stopped)
        server = _Server(coordinator, settings)
        gc.freeze()  # what is there now stays: to look through it now and then stops all for a tenth of a second
        server.run(sockets=[listener])
    finally:
        store.close()


def _stopped(number: int, frame: FrameType | None) -> None:
    """Take the signal that uvicorn raises again after its orderly end; what follows the server still runs."""


@contextmanager
def serving(store_url: str, listener: socket.socket) -> Iterator[str]:
    """A server in a thread of this process, for as long as the context lasts; gives its URL.

    It is for the user who started it: it asks for no token, and is to listen on loopback.

    Raises:
        StoreError: the store cannot be opened.
        HpsearchError: the server did not start.
    """
    store = open_store(store_url, exclusive=True)
    try:
        server = _Server(Coordinator(store), Settings(asks=False))
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
