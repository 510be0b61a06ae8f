"""One connection to a server: requests in, documents out, errors as ours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx2

from hpsearch.errors import ServerRefused, ServerUnreachable


def encode(value: float) -> float | str:
    """A number as it travels: what is not finite becomes text."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


class Connection:
    """Keeps connections open between requests; may be used from several threads.

    Args:
        server: base URL.
        token: sent as a bearer token, if given.
        timeout_seconds: for connecting and for each answer.
    """

    def __init__(self, server: str, *, token: str | None = None, timeout_seconds: float = 30.0) -> None:
        self.server = server.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            # Reading the system's certificates takes longer than ten requests.
            secure = not self.server.startswith("http://")
            self._http = httpx2.Client(base_url=self.server, headers=headers, timeout=timeout_seconds, verify=secure)
        except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
            raise ServerUnreachable(server, f"not a URL: {error}") from None

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:
        """The document that the server answers with (None if it has no body).

        Raises:
            ServerUnreachable: no answer.
            ServerRefused: an answer with a status of 400 or more.
        """
        response = self.send(method, path, body=body, params=params, headers=headers, timeout_seconds=timeout_seconds)
        return response.json() if response.content else None

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> httpx2.Response:
        """As :meth:`call`, but the answer as it came."""
        timeout = httpx2.USE_CLIENT_DEFAULT if timeout_seconds is None else timeout_seconds
        try:
            response = self._http.request(method, path, json=body, params=params, headers=headers, timeout=timeout)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServerUnreachable(self.server, _why(error)) from None
        _check(response)
        return response

    def events(self, path: str, *, after: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Server-sent events as (id, kind, data), until the server ends the stream.

        Raises:
            ServerUnreachable: the connection broke; call again with the last id.
        """
        try:
            with self._http.stream("GET", path, params={"after": after}, timeout=60.0) as response:
                if response.is_error:
                    response.read()
                    _check(response)
                fields: dict[str, str] = {}
                for line in response.iter_lines():
                    if line:
                        name, _, value = line.partition(":")
                        fields[name] = value.removeprefix(" ")
                        continue
                    if "data" in fields:
                        yield int(fields["id"]), fields["event"], json.loads(fields["data"])
                    fields = {}
        except httpx2.HTTPError as error:
            raise ServerUnreachable(self.server, _why(error)) from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _why(error: Exception) -> str:
    text = str(error).strip()
    return text or type(error).__name__


def _check(response: httpx2.Response) -> None:
    if response.is_error:
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        raise ServerRefused(response.status_code, problem if isinstance(problem, dict) else {})
