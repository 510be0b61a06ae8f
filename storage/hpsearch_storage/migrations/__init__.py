"""The schema of the database, brought up to date under a lock whenever a store is opened."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text

from hpsearch.errors import StoreError
from hpsearch_storage.engine import Database
from hpsearch_storage.tables import metadata
from hpsearch_storage.urls import shown

VERSION_TABLE = "hpsearch_version"
"""Not Alembic's default name, which another program may use in the same database."""
_ADVISORY_LOCK = 0x6870_7365_6172_6368  # "hpsearch"
_ONE_AT_A_TIME = threading.Lock()  # alembic.op and alembic.context are global to the process


def upgrade(database: Database) -> None:
    """Bring the schema up to date in one transaction; of several processes one does it and the others wait.

    Raises:
        StoreError: the schema is newer than this program, or the database holds tables of another one.
    """
    with _ONE_AT_A_TIME:
        script = ScriptDirectory.from_config(_config())
        if database.can_be_written() and database.read(current_version) == script.get_current_head():
            return  # the usual case waits for nobody who writes
        database.write(lambda connection: _upgrade(connection, script, shown(database.url)))


def _upgrade(connection: Connection, script: ScriptDirectory, where: str) -> None:
    # On SQLite the transaction has begun IMMEDIATE, which is the lock, and shows that the file can be written.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    current = current_version(connection)
    if current == script.get_current_head():
        return
    if current is None:
        _check_empty(connection, where)
    else:
        _check_known(current, script, where)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def refuse(database: Database) -> None:
    """Raise StoreError for a database that is newer than this program, or not ours; return for an empty one."""
    with _ONE_AT_A_TIME:
        script, where = ScriptDirectory.from_config(_config()), shown(database.url)

    def look(connection: Connection) -> None:
        current = current_version(connection)
        if current is None:
            _check_empty(connection, where)
        else:
            _check_known(current, script, where)

    database.read(look)


def newest_version() -> str:
    """The schema's version that this program brings a database to."""
    with _ONE_AT_A_TIME:
        return str(ScriptDirectory.from_config(_config()).get_current_head())


def current_version(connection: Connection) -> str | None:
    """The schema's version, None before the first."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _check_empty(connection: Connection, where: str) -> None:
    foreign = sorted(set(inspect(connection).get_table_names()) & set(metadata.tables))
    if foreign:
        raise StoreError(
            f"the database {where} has tables of another program ({', '.join(foreign)}): give hpsearch one of its own"
        )


def _check_known(current: str, script: ScriptDirectory, where: str) -> None:
    try:
        script.get_revision(current)
    except CommandError:
        raise StoreError(
            f"the store {where} was written by a newer hpsearch (schema {current}): update hpsearch, "
            "or give another store with --store"
        ) from None


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
