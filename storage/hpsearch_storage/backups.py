"""Copies of a SQLite store: taken while servers write to it, and put back."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import NullPool, create_engine

from hpsearch.errors import InvalidInput, StoreError
from hpsearch_storage.checking import look
from hpsearch_storage.faults import translated
from hpsearch_storage.lock import hold
from hpsearch_storage.urls import fault_of_folder, file_of, parse_url, shown


def backup(url: str, path: Path) -> int:
    """Copy a store to a new file: all of it as it is at one moment, while servers go on. Returns the bytes.

    Raises:
        InvalidInput: the store is PostgreSQL's, or the file is there.
        StoreError: the store cannot be read, or the file not be written.
    """
    source = _file(url, "back it up with pg_dump: pg_dump --format=custom --file={path} {url}", path)
    if path.exists():
        raise InvalidInput(f"{path} is there already: give a new file, a backup overwrites nothing")
    if fault := fault_of_folder(path):
        raise InvalidInput(f"{path} cannot be written: {fault}")
    if not source.exists():
        raise InvalidInput(f"there is no store at {source}: nothing to back up")
    parsed = parse_url(url)
    part = path.with_name(f"{path.name}.part")
    try:
        with translated(parsed), closing(sqlite3.connect(source, timeout=30)) as store:
            _copy(store, part)
        os.replace(part, path)
        _sync(path.parent)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


def restore(path: Path, url: str, *, replace: bool = False) -> None:
    """Put a backup in the place of a store that no server uses, in one transaction: all of it or nothing.

    Args:
        path: a file that :func:`backup` made.
        url: the store; a file that is not there is made.
        replace: whether a store that is there may go.

    Raises:
        InvalidInput: the store is PostgreSQL's, or there and not to be replaced; or the file is no whole store.
        StoreInUse: a server uses the store.
        StoreError: the file is of a newer program, or the store cannot be written.
    """
    target = _file(url, "restore it with pg_restore: pg_restore --clean --if-exists --dbname={url} {path}", path)
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    if target.exists() and not replace:
        raise InvalidInput(f"there is a store at {target} already: --replace puts the backup in its place")
    _check_backup(path)
    parsed = parse_url(url)
    release = hold(target, shown(parsed))
    try:
        with translated(parsed), closing(_read_only(path)) as source:
            _copy(source, target)
    finally:
        release()


def _file(url: str, instead: str, path: Path) -> Path:
    parsed = parse_url(url)
    found = file_of(parsed)
    if found is None:
        raise InvalidInput(f"the store {shown(parsed)} is PostgreSQL's: {instead.format(url=shown(parsed), path=path)}")
    return found


def _copy(source: sqlite3.Connection, target: Path) -> None:
    """Copy in one step: a snapshot of the write-ahead log, which no writer waits for and which waits for none."""
    is_new = not target.exists()
    with translated(parse_url(f"sqlite:///{target}")), closing(sqlite3.connect(target, timeout=30)) as made:
        made.execute("PRAGMA synchronous = FULL")
        source.backup(made)
        if is_new:
            made.execute("PRAGMA journal_mode = DELETE")  # one file, which can be read where nothing can be written


def _check_backup(path: Path) -> None:
    engine = create_engine("sqlite://", creator=lambda: _read_only(path), poolclass=NullPool)
    with translated(parse_url(f"sqlite:///{path}")), engine.connect() as connection:
        found = look(connection)
    if found.version is None:
        raise InvalidInput(f"{path} is no backup of a store: it has no tables of hpsearch")
    if found.version > found.newest:
        raise StoreError(f"{path} was written by a newer hpsearch (schema {found.version}): update hpsearch")
    if found.faults:
        raise InvalidInput(f"{path} is no whole backup: {found.faults[0]}")


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
