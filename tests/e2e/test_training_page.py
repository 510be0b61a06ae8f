"""A real study, trained by a real worker, watched in a real Chromium from its preflight to its verdicts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from processes import House, digits

pytestmark = pytest.mark.browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def test_a_study_is_watched_from_its_checks_to_its_verdicts(house: House, sqlite_url: str, page: Page) -> None:
    _, client = house.serve(sqlite_url)
    study = client.submit(digits(stages=[{"name": "coarse", "trials": 24, "epochs": 4}]))
    page.goto(f"{client.server}/studies/digits")
    expect(page.get_by_text("wait for a worker")).to_be_visible()
    house.worker(client, "w", "--pack", "4")
    expect(page.locator("#checks-title")).to_contain_text("passed", timeout=30_000)
    expect(page.locator(".checks")).to_contain_text("initial loss")
    expect(page.locator("#progress-text")).to_contain_text("24 of 24", timeout=60_000)
    study.wait(timeout_seconds=30)
    expect(page.locator(".trials .badge[class*=verdict-]").first).to_be_visible()
    page.locator("#trials").get_by_label("Verdict").select_option("healthy")
    expect(page.locator("tr[data-href]").first).to_be_visible()
    page.locator("tr[data-href] a").first.click()
    expect(page.locator("#verdicts-title")).to_be_visible()
    expect(page.locator(".verdict-healthy")).to_be_visible()
