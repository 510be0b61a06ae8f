"""Schemathesis over the whole OpenAPI document: every operation, valid and invalid requests, all checks, and sequences.

``HPSEARCH_FUZZ_EXAMPLES`` says how many of each kind are sent to each operation; ``make fuzz`` sends many.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis.generation import GenerationMode
from schemathesis.python import asgi

from hpsearch.coordinator import Coordinator
from hpsearch.testing import MemoryStore
from hpsearch_api.app import create_app
from hpsearch_api.security import Limits
from hpsearch_storage import open_store

EXAMPLES = int(os.environ.get("HPSEARCH_FUZZ_EXAMPLES", "270"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    database=None,
    derandomize="HPSEARCH_FUZZ_EXAMPLES" not in os.environ,
)
STUDY: dict[str, Any] = {
    "objective": {"kind": "external"},
    "metric": {"name": "score", "direction": "maximize"},
    "space": {
        "x": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
        "kind": {"type": "categorical", "choices": ["a", 1]},
    },
    "stages": [{"name": "coarse", "trials": 1000}],
}
CONFIG = {
    # Rules that no JSON schema can say (a name is taken, a value lies outside the study's space) are answered with 422.
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ["2xx", "304", "404", "409", "413", "422"]},
        "negative_data_rejection": {
            "expected-statuses": ["400", "401", "403", "404", "405", "409", "413", "415", "422"]
        },
    },
    "max-stream-events": 3,
}


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """The OpenAPI document, whose names, numbers and tokens are those of something that is there half of the time."""
    found = copy.deepcopy(create_app(Coordinator(MemoryStore())).openapi())
    known = {
        "name": ["s", "t"],
        "number": [0, 1, 2],
        "study_id": [1, 2],
        "trial_id": [1, 2, 3],
        "kind": ["axis", "history"],
    }
    del found["components"]["schemas"]["LeaseRequest"]["properties"]["wait_seconds"]  # up to a minute each
    for item in found["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", []):
                values = known.get(parameter["name"]) if parameter["in"] == "path" else None
                if values:
                    parameter["schema"] = {"anyOf": [{"enum": values}, parameter["schema"]]}
    return found


def cases() -> Iterator[tuple[str, GenerationMode]]:
    """Every operation, with valid requests, and with invalid ones where there are any.

    A name in a path may be any text, one body any document, and what is not known in a query is not looked at.
    """
    for path, item in sorted(document()["paths"].items()):
        for method, operation in sorted(item.items()):
            label = f"{method.upper()} {path}"
            yield label, GenerationMode.POSITIVE
            asked = operation.get("parameters", [])
            numbers = [p for p in asked if p["in"] == "path" and p["name"] in ("number", "study_id", "trial_id")]
            body = operation.get("requestBody", {"content": {"application/json": {"schema": {}}}})
            if numbers or body["content"]["application/json"]["schema"] or any(p["in"] == "query" for p in asked):
                yield label, GenerationMode.NEGATIVE


class Server:
    """An application with two studies, in the same process, and a client that has a token."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(f"sqlite:///{folder}/a.db")
        token = self.store.tokens.create("fuzz", ["admin"], expires_at=None, now=datetime.now(UTC))
        self.headers = {"Authorization": f"Bearer {token}"}
        self.app = create_app(Coordinator(self.store), limits=Limits(rate=10**9, failures=10**9))
        config = schemathesis.Config.from_dict(CONFIG)
        self.schema = schemathesis.openapi.from_dict(document(), config=config)
        self.schema.app = self.app
        without_tokens = copy.deepcopy(document())  # a request is to be invalid in another way than by its token
        for item in without_tokens["paths"].values():
            for operation in item.values():
                operation.pop("security", None)
        self.invalid = schemathesis.openapi.from_dict(without_tokens, config=config)
        self.invalid.app = self.app
        self.client: Any = None
        self.n_sent = 0

    def fill(self) -> None:
        """Make the two studies, with trials that have ended."""
        client = self.client
        for name in ("s", "t"):
            url = f"http://testserver/api/v1/studies/{name}/trials"
            client.post("http://testserver/api/v1/studies", json=STUDY | {"name": name}, headers=self.headers)
            done = [{"params": {"x": 0.1 * i, "kind": "a"}, "value": float(i)} for i in range(1, 9)]
            client.post(url, json={"trials": done}, headers=self.headers)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    app: Any = server.app
    with asgi.get_client(app, max_stream_events=3) as server.client:
        yield server
    server.store.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("fuzz")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """One that no other test has sent anything: what is sent follows from what is answered."""
    with served(tmp_path) as server:
        yield server


@pytest.mark.parametrize(("label", "mode"), list(cases()))
def test_every_operation_keeps_to_its_description(server: Server, label: str, mode: GenerationMode) -> None:
    method, _, path = label.partition(" ")
    server.fill()  # what was removed is there again
    operation = (server.schema if mode is GenerationMode.POSITIVE else server.invalid)[path][method]
    known = {parameter.name for parameter in operation.query}

    @SETTINGS
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        assume(known.issuperset(case.query or {}))
        server.n_sent += 1
        case.call_and_validate(session=server.client, headers=server.headers)

    send()


def test_sequences_of_operations(own_server: Server) -> None:
    server = own_server
    server.fill()

    class Machine(server.invalid.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            assume({parameter.name for parameter in case.operation.query}.issuperset(case.query or {}))

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            server.n_sent += 1
            return {"headers": server.headers, "session": server.client}

    # One server answers all sequences, so that the same beginning may go on in another way.
    with contextlib.suppress(FlakyStrategyDefinition):
        Machine.run(settings=settings(SETTINGS, max_examples=EXAMPLES, stateful_step_count=10))
