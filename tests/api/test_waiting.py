"""Workers that wait for something to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hpsearch.client import Client
from hpsearch_api.server import listen, serving


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with serving(f"sqlite:///{tmp_path}/store.db", listen("127.0.0.1", 0)) as url:
        yield url


def call(url: str, path: str, **body: Any) -> Any:
    with closing(Client(url)) as client:
        return client.connection.call("POST", f"/api/v1{path}", body=body, timeout_seconds=60)


def submit(url: str, name: str, kind: str, n: int) -> None:
    objective = {"kind": kind} | ({"entrypoint": "a:b"} if kind == "python" else {})
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    metric = {"name": "loss", "direction": "minimize"}
    stages = [{"name": "only", "trials": n}]
    call(url, "/studies", name=name, objective=objective, metric=metric, space=space, stages=stages, preflight=False)


def seen(url: str, worker: str) -> str | None:
    with closing(Client(url)) as client:
        return next((w["last_seen"] for w in client.workers() if w["name"] == worker), None)


def waits_since(url: str, worker: str) -> str:
    """When the one call under way was noted last: its lease is begun at once, and once more where it takes time."""
    seen_at = None
    while seen_at is None or seen(url, worker) != seen_at:
        seen_at = seen(url, worker)
        time.sleep(0.2)
    return seen_at


def test_who_waits_takes_what_comes_and_asks_for_nothing_before(url: str) -> None:
    submit(url, "busy", "external", 5)
    found: list[dict[str, Any]] = []

    def wait() -> None:
        found.extend(call(url, "/leases", worker="idle", kinds=["python"], wait_seconds=30)["leases"])

    waiting = threading.Thread(target=wait)
    waiting.start()
    first = waits_since(url, "idle")
    for _ in range(5):  # each is a change, of a study that is nothing for the one who waits
        (lease,) = call(url, "/leases", worker="busy", study="busy")["leases"]
        results = [{"token": lease["token"], "state": "completed", "value": 1.0}]
        call(url, "/leases/finish", worker="busy", results=results)
    time.sleep(0.2)
    assert seen(url, "idle") == first, "it has looked at the queue, and not asked for trials"
    began = time.monotonic()
    submit(url, "new", "python", 1)
    waiting.join(20)
    assert time.monotonic() - began < 5
    assert [lease["study"] for lease in found] == ["new"]


def test_who_waits_is_noted_as_there(url: str) -> None:
    waiting = threading.Thread(target=lambda: call(url, "/leases", worker="idle", wait_seconds=8))
    waiting.start()
    first = waits_since(url, "idle")
    while seen(url, "idle") == first and waiting.is_alive():
        time.sleep(0.1)
    assert waiting.is_alive(), "noted anew while it waits"
    waiting.join(20)
