"""Where a program posts its metrics: HTTP on this machine alone, with a token that holds while its trial runs."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BYTES = 2**20
"""A request may be so long, and so much waits at most."""
DROPPED_BYTES = 16 * MAX_BYTES
"""So much of a request that is refused is read: who still writes when the connection ends never sees the answer."""


class Mailbox:
    """Takes ``POST`` requests with lines of JSON for the one trial that is open, and says whether to go on.

    Attributes:
        url: where to post.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token: str | None = None
        self._is_ending: Callable[[], bool] = bool
        self._posted = b""
        box = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds without a byte

            def do_POST(self) -> None:
                with contextlib.suppress(OSError):  # the program has gone, or sends nothing more
                    status, answer = box._take(self)
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                    if status in (401, 413):
                        _drop(self)

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Nothing is written to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="mailbox", daemon=True).start()

    def open(self, is_ending: Callable[[], bool]) -> str:
        """A token for a new trial; that of the one before holds no longer. ``is_ending``: whether it is to stop."""
        with self._lock:
            self._token, self._is_ending, self._posted = secrets.token_urlsafe(32), is_ending, b""
            return self._token

    def read(self) -> bytes:
        """The lines posted since the last time."""
        with self._lock:
            posted, self._posted = self._posted, b""
        return posted

    def shut(self) -> None:
        """The trial is over: its token holds no longer."""
        with self._lock:
            self._token = None

    def close(self) -> None:
        """Listen no longer."""
        self._server.shutdown()
        self._server.server_close()

    def _take(self, request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        """Status and body of the answer."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        length = _length(request)
        with self._lock:
            if self._token is None or not hmac.compare_digest(given.encode(), self._token.encode()):
                return 401, b'{"detail": "the token is not that of the trial that runs: send HPSEARCH_METRICS_TOKEN"}'
        if length is None:
            return 411, b'{"detail": "a Content-Length is needed"}'
        if length > MAX_BYTES:
            return 413, b'{"detail": "at most 1 MiB at a time"}'
        body = request.rfile.read(length)
        with self._lock:
            if len(self._posted) + len(body) > MAX_BYTES:
                return 429, b'{"detail": "more than the worker can take: post less often"}'
            self._posted += body + b"\n"
            return 200, b'{"action": "stop"}' if self._is_ending() else b'{"action": "continue"}'


def _length(request: BaseHTTPRequestHandler) -> int | None:
    """Bytes of the body, None if that is not said."""
    said = request.headers.get("Content-Length", "")
    return int(said[:20]) if said.isascii() and said.isdigit() else None


def _drop(request: BaseHTTPRequestHandler) -> None:
    """Read what a request that was answered without its body still sends."""
    left = min(_length(request) or 0, DROPPED_BYTES)
    while left > 0 and (some := request.rfile.read1(min(left, 2**16))):
        left -= len(some)
