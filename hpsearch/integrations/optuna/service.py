"""Optuna's storage over HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from hpsearch.errors import HpsearchError, ServerRefused, ServerUnreachable
from hpsearch.http import Connection
from hpsearch.integrations.optuna.backend import Created, Needs, Outcome, Patch, Position, StudyDocument, View
from hpsearch.integrations.optuna.storage import BackendStorage, StaleCallback

_ROOT = "/api/v1/optuna"
_PLAIN = {"Accept-Encoding": "identity"}
"""Packing an answer takes the server longer than sending it over a fast network."""


class ServiceStorage(BackendStorage):
    """Optuna's storage on a server of ours: ``optuna.create_study(storage=ServiceStorage(url))``.

    Args:
        url: base URL of the server.
        token: bearer token; the environment variable ``HPSEARCH_TOKEN``, else none.
        patience_seconds: how long a server that does not answer is asked again, before ServerUnreachable.
        linger_seconds: as in BackendStorage, and so are the following.
        heartbeat_interval: seconds.
        grace_period: seconds.
        heartbeat_stale_trial_callback: called with what was found stale.

    Raises:
        ServerUnreachable: no answer, or not from a server of ours.
        ServerRefused: the token is wrong.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        patience_seconds: float = 30.0,
        linger_seconds: float = 0.1,
        heartbeat_interval: int | None = None,
        grace_period: int | None = None,
        heartbeat_stale_trial_callback: StaleCallback | None = None,
    ) -> None:
        self.url = url
        self.token = token or os.environ.get("HPSEARCH_TOKEN")
        self.patience_seconds = patience_seconds
        super().__init__(
            linger_seconds=linger_seconds,
            heartbeat_interval=heartbeat_interval,
            grace_period=grace_period,
            heartbeat_stale_trial_callback=heartbeat_stale_trial_callback,
        )
        backend = self._session.backend
        assert isinstance(backend, HttpBackend)
        backend.greet()

    def _connect(self) -> HttpBackend:
        return HttpBackend(self.url, self.token, self.patience_seconds)

    def _settings(self) -> tuple[str, ...]:
        return (*super()._settings(), "url", "token", "patience_seconds")

    def __repr__(self) -> str:
        return f"ServiceStorage({self.url!r})"


class HttpBackend:
    """:class:`Backend` by a server. Each call is one request; all of them may be repeated, so lost ones are."""

    def __init__(self, url: str, token: str | None, patience_seconds: float) -> None:
        self._connection = Connection(url, token=token)
        self._patience_seconds = patience_seconds

    def greet(self) -> None:
        """Raise ServerUnreachable unless a server of ours answers, ServerRefused if it refuses, as a wrong token."""
        try:
            answer = self._connection.call("GET", _ROOT)
        except ServerRefused as error:
            if error.status != 404:
                raise
            answer = None
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or "version" not in answer:
            raise ServerUnreachable(self._connection.server, "what answers is not hpsearch, or an older one")

    def create_study(self, name: str | None, directions: Sequence[str], key: str) -> StudyDocument:
        """See Backend."""
        study: StudyDocument = self._call("POST", "/studies", {"name": name, "directions": directions, "key": key})
        return study

    def delete_study(self, study_id: int) -> None:
        """See Backend."""
        self._call("DELETE", f"/studies/{study_id}")

    def studies(self) -> list[StudyDocument]:
        """See Backend."""
        found: list[StudyDocument] = []
        after: str | None = None
        while True:
            page = self._call("GET", "/studies", params={"after": after} if after else {})
            found += page["items"]
            after = page["next"]
            if after is None:
                return found

    def study(self, *, study_id: int | None = None, name: str | None = None) -> StudyDocument:
        """See Backend."""
        params = {"name": name} if study_id is None else {"id": study_id}
        study: StudyDocument = self._call("GET", "/study", params=params)
        return study

    def set_attributes(self, study_id: int, kind: str, attributes: dict[str, str]) -> None:
        """See Backend."""
        self._call("POST", f"/studies/{study_id}/attributes", {kind: attributes})

    def create_trial(self, study_id: int, template: Patch | None, times: Sequence[int | None], key: str) -> Created:
        """See Backend."""
        body = {"template": template, "times": times, "key": key}
        created: Created = self._call("POST", f"/studies/{study_id}/trials", body)
        return created

    def apply(self, patches: Sequence[Patch]) -> list[Outcome]:
        """See Backend."""
        outcomes: list[Outcome] = self._call("POST", "/patches", {"patches": patches})["outcomes"]
        return outcomes

    def sync(
        self, study_id: int, position: Position, patches: Sequence[Patch], needs: Needs
    ) -> tuple[list[Outcome], View]:
        """See Backend."""
        body = {"position": position, "patches": patches, "needs": needs}
        answer = self._call("POST", f"/studies/{study_id}/sync", body)
        return answer["outcomes"], answer["view"]

    def trial(self, trial_id: int) -> tuple[int, View]:
        """See Backend."""
        answer = self._call("GET", f"/trials/{trial_id}")
        return answer["study"], answer["view"]

    def heartbeat(self, trial_id: int) -> None:
        """See Backend."""
        self._call("POST", f"/trials/{trial_id}/heartbeat")

    def stale_trials(self, study_id: int, grace_seconds: float) -> list[int]:
        """See Backend."""
        params = {"grace_seconds": grace_seconds}
        trials: list[int] = self._call("GET", f"/studies/{study_id}/stale", params=params)["trials"]
        return trials

    def close(self) -> None:
        """See Backend."""
        self._connection.close()

    def _call(self, method: str, path: str, body: Any = None, params: dict[str, Any] | None = None) -> Any:
        give_up = time.monotonic() + self._patience_seconds
        pause = 0.05
        while True:
            try:
                return self._connection.call(method, _ROOT + path, body=body, params=params, headers=_PLAIN)
            except HpsearchError as error:
                lost = isinstance(error, ServerUnreachable) or (
                    isinstance(error, ServerRefused) and error.status == 503
                )
                if not lost or time.monotonic() + pause > give_up:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
