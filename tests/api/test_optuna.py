"""Optuna's own conformance class over HTTP, on both databases, and in another time zone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest
from optuna.testing.pytest_storages import StorageTestCase

from hpsearch.integrations.optuna import ServiceStorage
from hpsearch_api.server import listen, serving


@pytest.fixture(scope="module")
def sqlite_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(f"sqlite:///{tmp_path_factory.mktemp('optuna')}/store.db", listen("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture(scope="module")
def postgres_service(postgres_server: str) -> Iterator[str]:
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE optuna_service")
    with serving(f"{postgres_server}/optuna_service", listen("127.0.0.1", 0)) as server:
        yield server


def emptied(server: str) -> Iterator[ServiceStorage]:
    storage = ServiceStorage(server)
    yield storage
    for study in storage.get_all_studies():
        storage.delete_study(study._study_id)
    storage.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[ServiceStorage]:
    yield from emptied(request.getfixturevalue("sqlite_service" if request.param == "sqlite" else "postgres_service"))


class TestService(StorageTestCase):
    """59 tests of Optuna's."""


class TestServiceInAnotherTimeZone(StorageTestCase):
    """The same where local time is not UTC, by five and a half hours."""

    @pytest.fixture
    def storage(self, sqlite_service: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceStorage]:
        monkeypatch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield from emptied(sqlite_service)
        monkeypatch.undo()
        time.tzset()
