"""The schema: the same however it came to be, brought up to date once, never downwards."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from hpsearch.errors import StoreError
from hpsearch_storage import open_store
from hpsearch_storage.engine import Database
from hpsearch_storage.migrations import VERSION_TABLE, current_version, upgrade
from hpsearch_storage.tables import metadata
from hpsearch_storage.urls import parse_url
from stores import run_at_once


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "empty_postgres_url")
    return found


def plain(index: Any) -> dict[str, Any]:
    """An index whose condition is told as text."""
    return {**index, "dialect_options": {name: str(of) for name, of in index.get("dialect_options", {}).items()}}


def schema(connection: Connection) -> dict[str, Any]:
    """All that a database says of its tables, but for the version."""
    inspector = inspect(connection)
    found: dict[str, Any] = {}
    for table in sorted(set(inspector.get_table_names()) - {VERSION_TABLE}):
        columns = [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)]
        indexes = sorted(map(plain, inspector.get_indexes(table)), key=lambda index: str(index["name"]))
        unique = sorted(inspector.get_unique_constraints(table), key=lambda constraint: str(constraint["name"]))
        keys = sorted(inspector.get_foreign_keys(table), key=lambda key: str(key["name"]))
        found[table] = [columns, inspector.get_pk_constraint(table), indexes, unique, keys]
    if connection.dialect.name == "sqlite":  # AUTOINCREMENT and WITHOUT ROWID are seen in the text alone
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name"))
        found["options"] = [
            (row.name, "AUTOINCREMENT" in row.sql, "WITHOUT ROWID" in row.sql)
            for row in rows
            if row.name != VERSION_TABLE
        ]
    return found


def test_fresh_is_migrated(url: str) -> None:
    database = Database(parse_url(url))
    database.write(metadata.create_all)
    fresh = database.read(schema)
    database.write(metadata.drop_all)
    upgrade(database)
    assert database.read(schema) == fresh
    assert set(metadata.tables) <= set(fresh)
    database.close()


def test_alembic_sees_no_difference(url: str) -> None:
    database = Database(parse_url(url))
    upgrade(database)
    options = {"compare_type": True, "version_table": VERSION_TABLE}

    def difference(connection: Connection) -> Any:
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    assert database.read(difference) == []
    database.close()


def test_every_constraint_has_our_name(url: str) -> None:
    database = Database(parse_url(url))
    upgrade(database)

    def names(connection: Connection) -> set[str]:
        inspector = inspect(connection)
        found = set()
        for table in metadata.tables:
            if connection.dialect.name == "postgresql":  # SQLite's AUTOINCREMENT takes no name
                found.add(str(inspector.get_pk_constraint(table)["name"]))
            found.update(str(key["name"]) for key in inspector.get_foreign_keys(table))
            found.update(str(constraint["name"]) for constraint in inspector.get_unique_constraints(table))
        return found

    found = database.read(names)
    assert {"fk_trials_stage_id", "uq_trials_study_id_number", "uq_attempts_token"} <= found
    assert all(name.startswith(("pk_", "fk_", "uq_")) for name in found)
    database.close()


def test_opening_again_changes_nothing(url: str) -> None:
    open_store(url).close()
    database = Database(parse_url(url))
    before = database.read(schema)
    open_store(url).close()
    assert database.read(schema) == before
    assert database.read(current_version) == "0008"
    database.close()


def test_a_newer_database_is_refused(url: str) -> None:
    open_store(url).close()
    database = Database(parse_url(url))
    database.write(lambda connection: connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")))
    with pytest.raises(StoreError) as error:
        open_store(url)
    assert "was written by a newer hpsearch (schema 9999): update hpsearch, or give another store" in str(error.value)
    assert database.read(current_version) == "9999"
    database.close()


def test_a_failed_upgrade_leaves_nothing(url: str) -> None:
    database = Database(parse_url(url))
    database.write(lambda connection: connection.execute(text("CREATE TABLE workers (name text)")))
    with pytest.raises(StoreError, match="tables of another program"):
        upgrade(database)
    assert database.read(lambda connection: inspect(connection).get_table_names()) == ["workers"]
    database.close()


def test_processes_that_open_a_fresh_database_at_once(url: str) -> None:
    code = "from hpsearch_storage import open_store; s = open_store(url); s.check(); print(s.workers()); s.close()"
    assert run_at_once(4, code, url) == ["[]\n"] * 4
