"""The documentation site builds without a warning, and takes nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser fetches for a page: scripts, styles, pictures; not where its links lead."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in ("src", "srcset") or (tag == "link" and name == "href")):
                self.addresses.append(value.split()[0])
            elif value and tag == "a" and name == "href":
                self.links.append(value)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        for address in Fetched(page).addresses:
            assert not re.match(r"(https?:)?//", address), f"{page.name}: {address}"
            if not address.startswith(("data:", "/")):
                assert (page.parent / address.partition("?")[0].partition("#")[0]).exists(), f"{page.name}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_page_and_what_it_links_to_is_on_the_site(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.with_suffix(".html").name).exists(), page.name
    for page in site.glob("*.html"):
        for link in Fetched(page).links:
            if page.name != "404.html" and not re.match(r"[a-z]+:|#|/", link):
                assert (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"


def test_every_page_stands_in_the_navigation(site: Path) -> None:
    links = {link.partition("#")[0] for link in Fetched(site / "index.html").links}
    for page in (ROOT / "docs").glob("*.md"):
        assert {page.with_suffix(".html").name, "./"} & links, page.name
        assert page.stem == "index" or page.with_suffix(".html").name in links, f"{page.name}: name it in mkdocs.yml"


def test_the_reference_is_made_from_the_code(site: Path) -> None:
    text = (site / "python.html").read_text(encoding="utf-8")
    for name in ("Client.submit", "StudyHandle.wait", "StudyHandle.open_stage", "RunningTrial.report", "TrialStopped"):
        assert re.search(rf'id="[\w.]*{re.escape(name)}"', text), name
    assert not re.search(r":(class|func|meth):", text)
