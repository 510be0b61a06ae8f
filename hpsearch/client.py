"""The service from Python: submit a study, wait for it, look at it."""

from __future__ import annotations

import io
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hpsearch.defaults import DEFAULT_SERVER
from hpsearch.errors import HpsearchError, ServerRefused, ServerUnreachable
from hpsearch.http import Connection
from hpsearch.spec import StudySpec, load_study, parse_study

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FINAL = ("completed", "cancelled", "failed")


class Client:
    """A server, by its URL.

    Args:
        server: base URL; the environment variable ``HPSEARCH_SERVER``, else ``http://127.0.0.1:8765``.
        token: bearer token; the environment variable ``HPSEARCH_TOKEN``, else none.
    """

    def __init__(self, server: str | None = None, *, token: str | None = None) -> None:
        self.server = server or os.environ.get("HPSEARCH_SERVER") or DEFAULT_SERVER
        self.connection = Connection(self.server, token=token or os.environ.get("HPSEARCH_TOKEN"))

    def submit(self, study: StudySpec | dict[str, Any] | str | os.PathLike[str]) -> StudyHandle:
        """Submit a study: a path of a YAML or JSON file, a document, or a checked spec.

        Submitting an equal study again finds the one that is there.

        Raises:
            InvalidSpec: the document breaks a rule (checked here, before anything is sent).
            ServerRefused: another study has that name (409).
            ServerUnreachable: no answer.
        """
        if isinstance(study, dict):
            spec = parse_study(study)
        elif isinstance(study, StudySpec):
            spec = study
        else:
            spec = load_study(Path(study))
        key = {"Idempotency-Key": uuid.uuid4().hex}
        self.connection.call("POST", "/api/v1/studies", body=spec.model_dump(mode="json"), headers=key)
        return StudyHandle(self.connection, spec.name)

    def study(self, name: str) -> StudyHandle:
        """A study that is there. Raises ServerRefused (404) if it is not."""
        handle = StudyHandle(self.connection, name)
        handle.read()
        return handle

    def studies(self) -> list[dict[str, Any]]:
        """Every study, newest first."""
        return list(_pages(self.connection, "/api/v1/studies", {}))

    def workers(self) -> list[dict[str, Any]]:
        """Every worker, the last seen first."""
        return list(_pages(self.connection, "/api/v1/workers", {}))

    def close(self) -> None:
        """Close the connections."""
        self.connection.close()

    def __repr__(self) -> str:
        return f"Client({self.server!r})"


class StudyHandle:
    """A study on a server. Properties ask the server each time."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.name = name
        self._connection = connection
        self._path = f"/api/v1/studies/{quote(name, safe='')}"

    def read(self) -> dict[str, Any]:
        """The study's document: state, counts, stages, best, flags, progress, eta."""
        document: dict[str, Any] = self._connection.call("GET", self._path)
        return document

    @property
    def state(self) -> str:
        """One of preflight, running, paused, completed, cancelled, failed."""
        return str(self.read()["state"])

    @property
    def best(self) -> dict[str, Any] | None:
        """The winner so far (params, value, trial, stage), None before the first completed trial."""
        best: dict[str, Any] | None = self.read()["best"]
        return best

    @property
    def flags(self) -> list[dict[str, Any]]:
        """Borders at which the best trials lie."""
        flags: list[dict[str, Any]] = self.read()["flags"]
        return flags

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stages opened so far, with spaces, parents, counts and costs."""
        stages: list[dict[str, Any]] = self._connection.call("GET", f"{self._path}/stages")["items"]
        return stages

    @property
    def proposals(self) -> list[dict[str, Any]]:
        """Stages that :meth:`open_stage` would open: past flagged borders, and the next of the plan."""
        proposals: list[dict[str, Any]] = self._connection.call("GET", f"{self._path}/stages")["proposals"]
        return proposals

    def open_stage(self, proposal: str | None = None, **changes: Any) -> dict[str, Any]:
        """Open a proposed stage (the only one, or the one named), or with changes alone a stage of one's own.

        Args:
            proposal: name of the proposal.
            changes: ``trials``, ``epochs``, ``space={"lr": {"high": 0.1}}``, ``name``, ``parent`` and other keys of
                a stage.

        Raises:
            ServerRefused: there is no such proposal, or the stage is none of this study.
        """
        body = changes if proposal is None else {"proposal": proposal, **changes}
        stage: dict[str, Any] = self._connection.call("POST", f"{self._path}/stages", body=body)
        return stage

    @property
    def analysis(self) -> dict[str, Any]:
        """What the statistics say: ``narrowings``, ``agreements`` between epoch budgets, ``finalists``."""
        analysis: dict[str, Any] = self._connection.call("GET", f"{self._path}/analysis")
        return analysis

    def acknowledge(self, stage: str, parameter: str, side: str, note: str | None = "") -> list[dict[str, Any]]:
        """Note that a flag has been seen; ``note=None`` takes that back. Returns the flags."""
        body = {"stage": stage, "parameter": parameter, "side": side, "note": note}
        flags: list[dict[str, Any]] = self._connection.call("POST", f"{self._path}/flags/acknowledge", body=body)[
            "items"
        ]
        return flags

    @property
    def preflight(self) -> list[dict[str, Any]]:
        """The checks that ran before the first stage: ``{name, status, message, numbers}``."""
        checks: list[dict[str, Any]] = self._connection.call("GET", f"{self._path}/preflight")["items"]
        return checks

    def wait(
        self,
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = 0.5,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> StudyHandle:
        """Return when the study has ended.

        A server that is away for a while is waited for.

        Args:
            timeout_seconds: give up after so long with TimeoutError; None never does.
            poll_seconds: between two looks.
            on_progress: called with the study's document at each look.

        Raises:
            HpsearchError: the study failed; the text says why.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            document = self._read_patiently(deadline)
            if on_progress is not None:
                on_progress(document)
            if document["state"] == "failed":
                raise HpsearchError(f"the study {self.name!r} failed: {document['reason']}")
            if document["state"] == "preflight" and document["preflight"] == "failed":
                raise HpsearchError(f"the study {self.name!r} is held: {document['reason']}; resume() overrides that")
            if document["state"] in FINAL:
                return self
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"the study {self.name!r} is still {document['state']} after {timeout_seconds} s")
            time.sleep(poll_seconds)

    def _read_patiently(self, deadline: float | None) -> dict[str, Any]:
        pause = 0.2
        while True:
            try:
                return self.read()
            except (ServerUnreachable, ServerRefused) as error:
                given_up = deadline is not None and time.monotonic() > deadline
                if given_up or (isinstance(error, ServerRefused) and error.status < 500):
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 5.0)

    def trials(self, **query: Any) -> list[dict[str, Any]]:
        """Every trial that a query matches: ``stage``, ``state``, ``sort`` as in the HTTP interface."""
        return list(_pages(self._connection, f"{self._path}/trials", query))

    def trial(self, number: int) -> dict[str, Any]:
        """One trial, with its attempts."""
        document: dict[str, Any] = self._connection.call("GET", f"{self._path}/trials/{number}")
        return document

    def metrics(self, number: int) -> list[dict[str, Any]]:
        """What a trial reported: ``{step, values}`` per step."""
        items: list[dict[str, Any]] = self._connection.call("GET", f"{self._path}/trials/{number}/metrics")["items"]
        return items

    def log(self, number: int) -> str:
        """The end of what a trial of kind python or command wrote."""
        return self._connection.send("GET", f"{self._path}/trials/{number}/log").text

    def trials_dataframe(self) -> pd.DataFrame:
        """Every trial as a row: number, stage, state, value, step, reason, …, ``params.NAME``. Needs pandas."""
        try:
            import pandas as pd
        except ModuleNotFoundError:
            raise HpsearchError("trials_dataframe needs pandas: pip install 'hpsearch[pandas]'") from None
        frame = pd.read_csv(io.StringIO(self.export("csv").decode()))
        for column in ("started_at", "ended_at"):
            frame[column] = pd.to_datetime(frame[column], format="ISO8601", utc=True)
        return frame.set_index("number", drop=False)

    def export(self, form: str) -> bytes:
        """Every trial as a file: ``csv``, ``json`` or ``parquet``."""
        accept = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}.get(form)
        if accept is None:
            import json

            return json.dumps(self.trials(), indent=1).encode()
        headers = {"Accept": accept}
        response = self._connection.send("GET", f"{self._path}/trials", headers=headers, timeout_seconds=300)
        return response.content

    def figure(self, kind: str, **query: Any) -> go.Figure:
        """A figure of the study's page by its kind (``axis``, ``map``, …; see docs/pages.md). Needs plotly."""
        try:
            import plotly.io
        except ModuleNotFoundError:
            raise HpsearchError("figure needs plotly: pip install plotly") from None
        response = self._connection.send("GET", f"{self._path}/figures/{kind}", params=query)
        return plotly.io.from_json(response.text)

    def enqueue(self, *params: dict[str, Any]) -> list[int]:
        """Have these params trained, in place of sampled ones. Returns the numbers of their trials."""
        body = {"trials": [{"params": given} for given in params]}
        numbers: list[int] = self._connection.call("POST", f"{self._path}/trials", body=body)["numbers"]
        return numbers

    def events(self, *, after: int = 0) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """What happens in the study as (id, kind, data), from the beginning or after an id; does not end by itself."""
        return self._connection.events(f"{self._path}/events", after=after)

    def pause(self) -> None:
        """Hand out no more trials; running ones go on."""
        self._connection.call("POST", f"{self._path}/pause")

    def resume(self) -> None:
        """Hand out trials again."""
        self._connection.call("POST", f"{self._path}/resume")

    def cancel(self) -> None:
        """End the study now; what has finished stays."""
        self._connection.call("POST", f"{self._path}/cancel")

    def delete(self) -> None:
        """Remove the study and all that belongs to it."""
        self._connection.call("DELETE", self._path)

    def __repr__(self) -> str:
        return f"StudyHandle({self.name!r})"


def _pages(connection: Connection, path: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    after: str | None = None
    while True:
        page = connection.call("GET", path, params={**query, "limit": 1000, **({"after": after} if after else {})})
        yield from page["items"]
        after = page["next"]
        if after is None:
            return
