"""Chaos, in short; ``make chaos`` runs it for ten minutes on each database."""

from __future__ import annotations

import pytest

from chaos.driver import run


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_lost_doubled_or_stuck(database: str) -> None:
    report = run(database, seconds=10)
    assert report.faults == []
    assert report.seen["accepted"] > 20
    assert report.seen["trials completed"] > 20
    assert report.n_done >= 15
