"""What is done to a store from outside of a server, by its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from hpsearch.errors import InvalidInput, StoreUnreachable
from hpsearch_storage import checking, migrations, study_files, thinning
from hpsearch_storage.checking import Checked
from hpsearch_storage.engine import Database
from hpsearch_storage.study_files import Imported
from hpsearch_storage.thinning import Thinned
from hpsearch_storage.urls import fault_of_folder, file_of, parse_url, shown


@contextmanager
def opened(url: str, *, make: bool = False) -> Iterator[Database]:
    """A database that is there (or, with ``make``, may be made), closed in the end. Its schema is left as it is."""
    parsed = parse_url(url)
    path = file_of(parsed)
    if path is not None:
        if fault := fault_of_folder(path):
            raise StoreUnreachable(shown(parsed), fault)
        if not make and not path.exists():
            raise InvalidInput(f"there is no store at {path}: give --store")
    database = Database(parsed)
    try:
        yield database
    finally:
        database.close()


def upgrade(url: str) -> tuple[str | None, str]:
    """Bring the schema up to date. Returns its version before and after."""
    with opened(url, make=True) as database:
        before = database.read(migrations.current_version)
        migrations.upgrade(database)
        return before, migrations.newest_version()


def check(url: str) -> Checked:
    """See :func:`hpsearch_storage.checking.check`; also refuses what is newer than this program."""
    with opened(url) as database:
        found = checking.check(database)
        if found.version is None or found.version > found.newest:
            migrations.refuse(database)
        return found


def thin(
    url: str, *, older_than: timedelta, keep_every: int, now: datetime, study: str | None, dry_run: bool
) -> list[Thinned]:
    """See :func:`hpsearch_storage.thinning.thin`."""
    with opened(url) as database:
        migrations.upgrade(database)
        return thinning.thin(
            database, older_than=older_than, keep_every=keep_every, now=now, study=study, dry_run=dry_run
        )


def export_study(url: str, name: str, path: Path, *, now: datetime) -> int:
    """See :func:`hpsearch_storage.study_files.write_file`."""
    with opened(url) as database:
        migrations.upgrade(database)
        return study_files.write_file(database, name, path, now=now)


def import_study(url: str, path: Path, *, name: str | None, now: datetime) -> Imported:
    """See :func:`hpsearch_storage.study_files.read_file`."""
    with opened(url, make=True) as database:
        migrations.upgrade(database)
        return study_files.read_file(database, path, name=name, now=now)
