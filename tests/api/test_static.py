"""Scripts and styles: what is served, how long it may be kept, and what comes from others."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import plotly.offline
import pytest
from starlette.testclient import TestClient

from hpsearch.coordinator import Coordinator
from hpsearch_api.app import create_app
from hpsearch_api.pages.files import STATIC, static_files, static_url
from hpsearch_storage import open_store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    store = open_store(f"sqlite:///{tmp_path}/a.db", exclusive=True)
    with TestClient(create_app(Coordinator(store)), base_url="http://127.0.0.1:8765") as client:
        yield client
    store.close()


def test_plotly_is_the_one_that_its_note_says() -> None:
    script = (STATIC / "plotly" / "plotly.min.js").read_bytes()
    note = (STATIC / "plotly" / "README.md").read_text()
    built = json.loads((ROOT / "scripts" / "plotly" / "package.json").read_text())["dependencies"]["plotly.js"]
    assert f"{hashlib.sha256(script).hexdigest()}  plotly.min.js" in note
    assert f"plotly.js {built}" in note
    assert script.startswith(f"/* plotly.js {built}, MIT".encode())
    assert "MIT License" in (STATIC / "plotly" / "LICENSE").read_text()
    python_is_made_for = plotly.offline.get_plotlyjs_version().split(".")[0]
    assert built.split(".")[0] == python_is_made_for


def test_no_script_compiles_text() -> None:
    for path in static_files().values():
        if path.suffix == ".js":
            assert not re.search(r"\beval\(|[^\w.]Function\(|new Function", path.read_text()), path


def test_an_address_with_a_version_is_kept_for_good(client: TestClient) -> None:
    url = static_url("plotly/plotly.min.js")
    packed = client.get(url, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert packed.headers["content-type"].startswith("text/javascript")
    plain = client.get(url, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == packed.content == (STATIC / "plotly" / "plotly.min.js").read_bytes()
    assert int(packed.headers["content-length"]) == len(gzip.compress(plain.content, compresslevel=6, mtime=0))


def test_an_address_without_a_version_is_asked_for_again(client: TestClient) -> None:
    first = client.get("/static/common.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/common.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/static/style.css").headers["content-type"].startswith("text/css")
    assert client.get("/static/icon.svg").headers["content-type"].startswith("image/svg+xml")


@pytest.mark.parametrize("path", ["../render.py", "%2e%2e/render.py", "nowhere.js", "plotly/README.md", ""])
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(f"/static/{path}").status_code == 404
