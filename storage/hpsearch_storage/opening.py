"""The public door."""

from __future__ import annotations

import logging
from collections.abc import Callable

from hpsearch.errors import StoreUnreachable
from hpsearch_storage.engine import Database
from hpsearch_storage.filesystems import network_type
from hpsearch_storage.lock import hold
from hpsearch_storage.migrations import upgrade
from hpsearch_storage.store import SqlStore
from hpsearch_storage.urls import fault_of_folder, file_of, parse_url, shown

log = logging.getLogger(__name__)


def open_store(url: str, *, exclusive: bool = False) -> SqlStore:
    """Open a store, and create it or bring its schema up to date if need be.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql://user:password@host/database``.
        exclusive: refuse a SQLite file that another process has opened exclusively, as a server does. No effect on
            PostgreSQL, which several servers share.

    Raises:
        InvalidInput: no URL of a store.
        StoreInUse: another process has the file.
        StoreError: the database cannot be reached, is not ours, or is newer than this program.
    """
    parsed = parse_url(url)
    path = file_of(parsed)
    if path is not None and (fault := fault_of_folder(path)):
        raise StoreUnreachable(shown(parsed), fault)
    if path is not None and (kind := network_type(path)):
        log.warning(
            "%s lies on a network file system (%s), where SQLite can lose or damage data: "
            "give --store a file on a local disk, or PostgreSQL",
            path,
            kind,
        )
    release: Callable[[], None] = hold(path, shown(parsed)) if exclusive and path is not None else _nothing
    database = Database(parsed)
    try:
        upgrade(database)
    except BaseException:
        database.close()
        release()
        raise
    return SqlStore(database, on_close=release)


def _nothing() -> None:
    """There is no lock to release."""
