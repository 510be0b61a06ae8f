"""Opening a store that is not there, not ours, or not free: one sentence that says what to do."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from hpsearch.errors import InvalidInput, StoreError, StoreFull, StoreInUse, StoreUnreachable
from hpsearch_storage import open_store
from stores import NOW, create, sentence

# -- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (
            "mysql://u:secret@h/db",
            "unknown scheme of a store 'mysql'; did you mean 'sqlite'? Known: sqlite, postgresql",
        ),
        ("sqlit:///a.db", "did you mean 'sqlite'"),
        ("postgresql+asyncpg://u:secret@h/db", "Known: sqlite, postgresql"),
        ("hpsearch.db", "'hpsearch.db' is not a URL: write sqlite:///file.db or postgresql://"),
        ("", "is not a URL"),
        ("postgresql://u:secret@h:port/db", "'postgresql://***@h:port/db' is not a URL"),
        ("sqlite://", "names no file: write sqlite:///file.db"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://a.db", "three slashes, sqlite:///a.db"),
        ("sqlite:///a\0.db", "NUL"),
    ],
)
def test_urls_that_name_no_store(url: str, part: str) -> None:
    with pytest.raises(InvalidInput) as error:
        open_store(url)
    assert part in sentence(error)
    assert "secret" not in str(error.value)


def test_relative_and_absolute_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///near %.db")
    create(store)
    store.close()
    again = open_store(f"sqlite:///{tmp_path}/near %.db", exclusive=True)
    assert again.study("a").name == "a"
    again.close()


def test_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreUnreachable) as error:
        open_store("postgresql://u:secret@h/db")
    assert "hpsearch[server]" in sentence(error)
    assert "secret" not in str(error.value)


# -- SQLite files -------------------------------------------------------------------------------------------------


def test_missing_folder(tmp_path: Path) -> None:
    for exclusive in (False, True):
        with pytest.raises(StoreUnreachable) as error:
            open_store(f"sqlite:///{tmp_path}/no/where/a.db", exclusive=exclusive)
        assert f"the folder {tmp_path}/no/where does not exist; create it" in sentence(error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable) as error:
        open_store(f"sqlite:///{tmp_path}")
    assert "is a folder; name a file" in sentence(error)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"name: cifar10\n" * 1000)
    with pytest.raises(StoreUnreachable) as error:
        open_store(f"sqlite:///{path}", exclusive=True)
    assert "a.db is not a SQLite database; restore a copy of it, or give another file" in sentence(error)
    assert path.read_bytes() == b"name: cifar10\n" * 1000


def test_a_damaged_file(tmp_path: Path, sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    create(store)
    store.close()
    path = tmp_path / "store.db"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with pytest.raises(StoreUnreachable) as error:
        open_store(sqlite_url).study("a")
    assert "is damaged; restore a copy" in sentence(error)


def test_tables_of_another_program(tmp_path: Path, sqlite_url: str) -> None:
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("CREATE TABLE studies (study_id INTEGER)")
    connection.close()
    with pytest.raises(StoreError) as error:
        open_store(sqlite_url)
    assert "has tables of another program (studies)" in sentence(error)


_WITHOUT_RIGHTS = """
import os, sys
from hpsearch_storage import open_store
open_store(f"sqlite:///{sys.argv[1]}/first.db").close()  # imports what it needs while it may read it
if os.geteuid() == 0:  # root may write everywhere
    os.setgroups([])
    os.setuid(65534)
for url in sys.argv[2:]:
    for exclusive in (False, True):
        try:
            open_store(url, exclusive=exclusive)
        except Exception as error:
            print(type(error).__name__, error)
"""


@pytest.fixture
def readable_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="hpsearch-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_files_without_the_right_to_write(readable_folder: Path, tmp_path: Path) -> None:
    closed, secret = readable_folder / "closed", readable_folder / "secret"
    urls = [f"sqlite:///{closed}/there.db", f"sqlite:///{closed}/new.db", f"sqlite:///{secret}/a.db"]
    closed.mkdir()
    secret.mkdir()
    open_store(urls[0]).close()
    (closed / "there.db").chmod(0o444)
    closed.chmod(0o555)
    secret.chmod(0o000)
    try:
        command = [sys.executable, "-c", _WITHOUT_RIGHTS, str(tmp_path), *urls]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        closed.chmod(0o755)
        secret.chmod(0o755)
    lines = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["StoreUnreachable"] * 6
    assert "there.db or its folder is read-only; make both writable" in lines[0]
    assert f"its lock cannot be taken in {closed} (Permission denied)" in lines[1]
    assert "new.db cannot be opened; check the rights on it and its folder" in lines[2]
    assert f"the folder {secret} cannot be entered; check the rights on it" in lines[4]
    assert sorted(path.name for path in closed.iterdir()) == ["there.db"]


def test_no_space_left(sqlite_url: str) -> None:
    open_store(sqlite_url).close()
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as empty:
        (n_pages,) = empty.execute("PRAGMA page_count").fetchone()

    def limit(connection: Any, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {n_pages + 10}")

    event.listen(Engine, "connect", limit)
    try:
        store = open_store(sqlite_url)
        study = create(store)
        stage = store.stages(study.id)[0]
        with pytest.raises(StoreFull) as error:
            store.add_trials(stage.id, 0, [{"x": 0.5}] * 1000, now=NOW)
        assert "no space is left for the store sqlite:///" in sentence(error)
        assert store.stages(study.id)[0].n_created == 0
        assert store.add_trials(stage.id, 0, [{"x": 0.5}], now=NOW), "what fits is still taken"
        store.close()
    finally:
        event.remove(Engine, "connect", limit)


def test_a_full_disk(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here; test_no_space_left covers the rest")
    try:
        store = open_store(f"sqlite:///{tmp_path}/a.db")
        study = create(store)
        stage = store.stages(study.id)[0]
        (tmp_path / "ballast").write_bytes(b"x" * (os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_bsize))
        with pytest.raises(StoreFull):
            store.add_trials(stage.id, 0, [{"x": 0.5}] * 1000, now=NOW)
        (tmp_path / "ballast").unlink()
        assert store.add_trials(stage.id, 0, [{"x": 0.5}], now=NOW)
        store.close()
        (tmp_path / "ballast").write_bytes(b"x" * (os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_bsize))
        with pytest.raises(StoreFull):
            open_store(f"sqlite:///{tmp_path}/b.db")
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


# -- the lock of a server -----------------------------------------------------------------------------------------


def test_the_second_server_is_refused(sqlite_url: str) -> None:
    code = "import sys; from hpsearch_storage import open_store; s = open_store(sys.argv[1], exclusive=True)"
    code += "; print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, sqlite_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreInUse) as error:
            open_store(sqlite_url, exclusive=True)
        assert f"store.db is in use by another hpsearch server (process {holder.pid})" in sentence(error)
        reader = open_store(sqlite_url)
        create(reader)
        reader.close()
        holder.send_signal(signal.SIGKILL)
    again = open_store(sqlite_url, exclusive=True)
    with pytest.raises(StoreInUse, match=f"process {os.getpid()}"):
        open_store(sqlite_url, exclusive=True)
    again.close()
    open_store(sqlite_url, exclusive=True).close()


def test_servers_share_postgres(postgres_url: str) -> None:
    first, second = open_store(postgres_url, exclusive=True), open_store(postgres_url, exclusive=True)
    assert second.study(create(first).name) == first.study("a")
    first.close()
    second.close()
