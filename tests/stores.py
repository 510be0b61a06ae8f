"""What tests of the store share: a small study, and processes that begin together."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpsearch.errors import HpsearchError
from hpsearch.spec import parse_study
from hpsearch.store import Store
from hpsearch.study import NewStage, Study

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TTL = timedelta(seconds=30)
DOCUMENT: dict[str, Any] = {
    "name": "a",
    "objective": {"kind": "external"},
    "metric": {"name": "loss", "direction": "minimize"},
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
    "stages": [{"name": "only", "trials": 1000}],
}


def create(store: Store, **changes: Any) -> Study:
    spec = parse_study(DOCUMENT | changes)
    return store.create_study(spec, NewStage(spec.stages[0], spec.space, 1000), now=NOW)[0]


def sentence(error: pytest.ExceptionInfo[HpsearchError]) -> str:
    found = str(error.value)
    assert "\n" not in found
    return found


_HEAD = "import sys; url, i = sys.argv[1], int(sys.argv[2]); import hpsearch_storage; print('ready', flush=True); "
_HEAD += "sys.stdin.readline()\n"


def run_at_once(n: int, code: str, url: str) -> list[str]:
    """What ``n`` processes print that run ``code``, which finds ``url`` and its own number ``i``."""
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _HEAD + code, url, str(i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(n)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=60)[0] for process in running]
        assert [process.returncode for process in running] == [0] * n
        return printed
    finally:
        for process in running:
            process.kill()
            process.wait()
