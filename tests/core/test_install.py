"""What each part needs: the client and worker do without the server's packages, the server without torch."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hpsearch

ROOT = Path(__file__).parents[2]
SERVER = ["alembic", "fastapi", "jinja2", "numpy", "optuna", "plotly", "psycopg", "pyarrow", "scipy", "sqlalchemy"]
TRAIN = ["torch", "sklearn", "PIL"]

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def python(code: str, *, without: list[str]) -> subprocess.CompletedProcess[str]:
    blocked = BLOCK.format(blocked=set(without))
    return subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("from hpsearch import Client; Client('http://127.0.0.1:1')", [*SERVER, *TRAIN]),
        ("import hpsearch.worker.loop, hpsearch.worker.session, hpsearch.worker.supervisor", [*SERVER, *TRAIN]),
        ("import hpsearch.worker.runners, hpsearch.worker.child", [*SERVER, *TRAIN]),
        ("import hpsearch.worker.train", [p for p in SERVER if p not in ("numpy", "pyarrow", "scipy")]),
        ("import hpsearch_api.server", TRAIN),
        ("import hpsearch_storage", [*TRAIN, "fastapi", "plotly"]),
    ],
)
def test_it_does_without(code: str, without: list[str]) -> None:
    done = python(code, without=without)
    assert done.returncode == 0, done.stderr


HEAVY = ["torch", "optuna", "scipy", "pandas", "plotly", "sqlalchemy", "fastapi", "httpx2", "pydantic", "numpy"]


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import hpsearch", HEAVY),
        (
            "sys.argv = ['hpsearch', '--help']\nfrom hpsearch.cli import main\ntry: main()\nexcept SystemExit: pass",
            HEAVY,
        ),
        ("import hpsearch_api.server", ["torch", "optuna", "scipy.stats", "pandas"]),
    ],
)
def test_it_starts_without_loading_what_is_heavy(code: str, heavy: list[str]) -> None:
    done = python(f"{code}\nfound = [m for m in {heavy} if m in sys.modules]; assert not found, found", without=[])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "without", "extra"),
    [
        (["serve"], SERVER, "hpsearch[server]"),
        (["worker", "--server", "http://127.0.0.1:1"], TRAIN, "hpsearch[train]"),
        (["replay", "s", "0"], TRAIN, "hpsearch[train]"),
    ],
)
def test_what_is_missing_is_named_with_its_extra(arguments: list[str], without: list[str], extra: str) -> None:
    code = f"sys.argv = ['hpsearch', *{arguments!r}]\nfrom hpsearch.cli import main; main()"
    done = python(code, without=without)
    assert done.returncode == 2, done.stderr
    assert extra in done.stderr
    assert "Traceback" not in done.stderr


def test_the_extras_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not {"torch", "sqlalchemy", "fastapi", "optuna"} & {d.split(">")[0] for d in project["dependencies"]}
    server = {d.split(">")[0].split("[")[0] for d in project["optional-dependencies"]["server"]}
    assert "torch" not in server
    assert {"sqlalchemy", "fastapi", "optuna", "plotly", "uvicorn", "alembic", "psycopg"} <= server


def test_every_all_is_true() -> None:
    import hpsearch_api
    import hpsearch_storage

    found = 0
    for package in (hpsearch, hpsearch_api, hpsearch_storage):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module.name.endswith("__main__") or ".migrations." in module.name:
                continue
            loaded = importlib.import_module(module.name)
            names = getattr(loaded, "__all__", None)
            if names is not None:
                found += 1
                assert all(hasattr(loaded, name) for name in names), module.name
    assert found >= 2
    assert all(hasattr(hpsearch, name) for name in hpsearch.__all__)
