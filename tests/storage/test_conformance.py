from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpsearch.store import Store
from hpsearch.testing import MemoryStore, StoreConformance
from hpsearch_storage import open_store


class TestMemory(StoreConformance):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


class TestSqlite(StoreConformance):
    @pytest.fixture
    def store(self, sqlite_url: str) -> Iterator[Store]:
        store = open_store(sqlite_url)
        yield store
        store.close()


class TestPostgres(StoreConformance):
    @pytest.fixture
    def store(self, postgres_url: str) -> Iterator[Store]:
        store = open_store(postgres_url)
        yield store
        store.close()
