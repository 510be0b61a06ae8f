from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from feeding import Server
from processes import House

FLAGS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")  # while it is there, an event loop runs, in which no other can be run
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        installed = [Path("/usr/bin/chromium"), Path(playwright.chromium.executable_path)]
        found = next((path for path in installed if path.exists()), None)
        if found is None:
            pytest.fail("Chromium is missing: `make test` installs it")
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("pages"))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def trouble() -> list[str]:
    """Console errors that a test expects are removed from here by it."""
    return []


@pytest.fixture
def page(browser: Browser, server: Server, trouble: list[str]) -> Iterator[Page]:
    """A page that allows no error in its console and no request to a foreign origin."""
    context = browser.new_context(base_url=server.url, color_scheme="light", viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)

    def watch(url: str) -> None:
        if not url.startswith((server.url, "data:", "blob:")):
            trouble.append(f"foreign request: {url}")

    page.on("request", lambda request: watch(request.url))
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    yield page
    context.close()
    assert trouble == []


@pytest.fixture(scope="module")
def make_study(server: Server) -> Callable[..., str]:
    """Submit a study with some finished trials; each call makes another."""
    made = iter(range(100))

    def make(finished: int = 0, **options: Any) -> str:
        name = f"study-{next(made)}"
        server.submit(name, **options)
        if finished:
            server.feed(name, finished)
        return name

    return make
