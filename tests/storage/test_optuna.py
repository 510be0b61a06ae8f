"""Optuna's own conformance class over a store of this process, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.testing.pytest_storages import StorageTestCase

from hpsearch_storage.optuna import StoreStorage


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[StoreStorage]:
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    storage = StoreStorage(url)
    yield storage
    storage.close()


class TestStore(StorageTestCase):
    """59 tests of Optuna's."""
