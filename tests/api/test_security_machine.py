"""A Hypothesis state machine against the API: studies and leases in any order, with every scope, and a small model."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from starlette.testclient import TestClient

from hpsearch.coordinator import Coordinator
from hpsearch_api.app import create_app
from hpsearch_storage import open_store

STUDY: dict[str, Any] = {
    "objective": {"kind": "external"},
    "metric": {"name": "score", "direction": "maximize"},
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "stages": [{"name": "only", "trials": 4}],
}
NAMES = st.sampled_from(["a", "b"])
SCOPES = {
    "read": {"read"},
    "submit": {"read", "submit"},
    "work": {"work"},
    "admin": {"read", "submit", "work", "admin"},
}


class Api(RuleBasedStateMachine):
    """What must hold: scopes are kept whatever happened before, and no answer is a 5xx or contradicts the model."""

    leases = Bundle("leases")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = open_store(f"sqlite:///{Path(self.folder.name)}/a.db")
        now = datetime.now(UTC)
        self.tokens = {scope: self.store.tokens.create(scope, [scope], expires_at=None, now=now) for scope in SCOPES}
        self.client = TestClient(
            create_app(Coordinator(self.store)), base_url="http://x", raise_server_exceptions=False
        )
        self.client.__enter__()
        self.states: dict[str, str] = {}
        self.finished: dict[str, int] = {}

    def call(self, needed: str, scope: str, method: str, path: str, **more: Any) -> Any | None:
        """The answer to a call with a token of a scope; None if that was refused, as it must be."""
        headers = {"Authorization": f"Bearer {self.tokens[scope]}"}
        answer = self.client.request(method, f"/api/v1/{path}", headers=headers, **more)
        assert answer.status_code < 500, answer.text
        assert (answer.status_code == 403) is (needed not in SCOPES[scope]), (needed, scope, answer.status_code)
        return None if answer.status_code == 403 else answer

    @rule(name=NAMES, scope=st.sampled_from(list(SCOPES)))
    def submit(self, name: str, scope: str) -> None:
        answer = self.call("submit", scope, "POST", "studies", json=STUDY | {"name": name})
        if answer is not None:
            assert answer.status_code == (200 if name in self.states else 201)
            self.states.setdefault(name, "running")
            self.finished.setdefault(name, 0)

    @rule(name=NAMES, scope=st.sampled_from(list(SCOPES)), step=st.sampled_from(["pause", "resume", "cancel"]))
    def steer(self, name: str, scope: str, step: str) -> None:
        answer = self.call("submit", scope, "POST", f"studies/{name}/{step}")
        if answer is None:
            return
        state = self.states.get(name)
        wanted = {"pause": "paused", "resume": "running", "cancel": "cancelled"}[step]
        if state is None:
            assert answer.status_code == 404
        elif state in ("cancelled", "completed") and state != wanted:
            assert answer.status_code == 409
        else:
            assert answer.json()["state"] == wanted
            self.states[name] = wanted

    @rule(name=NAMES, scope=st.sampled_from(list(SCOPES)))
    def delete(self, name: str, scope: str) -> None:
        answer = self.call("admin", scope, "DELETE", f"studies/{name}")
        if answer is not None:
            assert answer.status_code == (204 if name in self.states else 404)
            self.states.pop(name, None)
            self.finished.pop(name, None)

    @rule(target=leases, name=NAMES, scope=st.sampled_from(list(SCOPES)))
    def lease(self, name: str, scope: str) -> tuple[str, str] | None:
        body = {"worker": f"w{len(self.finished)}", "study": name}
        answer = self.call("work", scope, "POST", "leases", json=body)
        if answer is None or answer.status_code == 404:
            assert answer is None or name not in self.states
            return None
        found = answer.json()["leases"]
        assert not found or self.states[name] in ("running", "paused")
        return (name, found[0]["token"]) if found else None

    @rule(held=consumes(leases), scope=st.sampled_from(list(SCOPES)), value=st.floats())
    def finish(self, held: tuple[str, str] | None, scope: str, value: float) -> None:
        if held is None:
            return
        number = value if value == value and abs(value) != float("inf") else str(value).replace("inf", "Infinity")
        number = {"nan": "NaN"}.get(str(number), number)
        result = {"token": held[1], "state": "completed", "value": number}
        answer = self.call("work", scope, "POST", "leases/finish", json={"worker": "w0", "results": [result]})
        if answer is not None:
            assert isinstance(answer.json()["outcomes"][0]["accepted"], bool)

    @invariant()
    def studies_are_those_of_the_model(self) -> None:
        answer = self.call("read", "read", "GET", "studies")
        assert answer is not None
        there = {study["name"]: study for study in answer.json()["items"]}
        assert set(there) == set(self.states)
        for name, study in there.items():
            counts = study["counts"]
            assert sum(counts.values()) <= 4
            ended = counts["completed"] + counts["diverged"] + counts["failed"]
            assert ended >= self.finished[name], "what has ended stays"
            self.finished[name] = ended
            if study["state"] in ("completed", "failed"):
                self.states[name] = study["state"]
            assert study["state"] == self.states[name]

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.__exit__(None, None, None)
            self.store.close()
            self.folder.cleanup()


TestApi = Api.TestCase
TestApi.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
