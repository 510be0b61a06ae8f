"""A real server and Optuna's storage on it; test modules with fixtures of the same names have their own."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest

from hpsearch.client import Client
from hpsearch.integrations.optuna import ServiceStorage
from hpsearch_api.server import listen, serving

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(f"sqlite:///{tmp_path_factory.mktemp('optuna')}/store.db", listen("127.0.0.1", 0)) as url:
        yield url


@pytest.fixture
def storage(server: str) -> Iterator[ServiceStorage]:
    storage = ServiceStorage(server)
    yield storage
    storage.close()


@pytest.fixture
def other(server: str) -> Iterator[ServiceStorage]:
    """Another process, as far as anyone can see."""
    storage = ServiceStorage(server)
    yield storage
    storage.close()


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.close()
