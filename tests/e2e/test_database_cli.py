"""Care for a store from the command line: what it says, and its exit status."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hpsearch.study import StudyState
from hpsearch_storage import open_store
from stores import create


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of the default name, which holds a completed study."""
    store = open_store(f"sqlite:///{tmp_path / 'hpsearch.db'}")
    store.set_state(create(store).id, StudyState.COMPLETED, now=datetime.now(UTC))
    store.close()
    return tmp_path


def hpsearch(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "hpsearch", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_upgrade_check_backup_and_restore(folder: Path) -> None:
    status, said = hpsearch(folder, "db", "upgrade")
    assert (status, "it is up to date" in said) == (0, True)
    assert hpsearch(folder, "db", "backup", "copy.db")[0] == 0
    status, said = hpsearch(folder, "db", "restore", "copy.db")
    assert (status, "--replace puts the backup in its place" in said) == (2, True)
    with sqlite3.connect(folder / "hpsearch.db") as connection:
        connection.execute("UPDATE stages SET n_completed = 5")
    connection.close()
    status, said = hpsearch(folder, "db", "check", "--json")
    assert status == 1
    assert "a stage counts other trials than it has" in json.loads(said)["faults"][0]
    assert hpsearch(folder, "db", "restore", "copy.db", "--replace")[0] == 0
    status, said = hpsearch(folder, "db", "check")
    assert (status, "no fault found" in said) == (0, True)


def test_a_study_is_exported_and_imported(folder: Path) -> None:
    assert hpsearch(folder, "export", "a", "--format", "study", "-o", "a.study")[0] == 0
    status, said = hpsearch(folder, "import", "a.study")
    assert (status, "give --name another" in said) == (2, True)
    status, said = hpsearch(folder, "import", "a.study", "--name", "b", "--json")
    assert (status, json.loads(said)) == (0, {"name": "b", "n_trials": 0, "state": "completed"})
    status, said = hpsearch(folder, "import", "postgresql://u:secret@h/db")
    assert (status, "secret" in said) == (2, False)


def test_thinning_needs_to_be_told_what(folder: Path) -> None:
    assert hpsearch(folder, "db", "thin", "--older-than", "0s", "--keep-every", "2")[0] == 0
    status, said = hpsearch(folder, "db", "thin", "--older-than", "soon", "--keep-every", "2")
    assert (status, "'soon' is no duration: give a number and s, m, h, d or w" in said) == (2, True)
    assert hpsearch(folder, "db", "thin")[0] == 2
