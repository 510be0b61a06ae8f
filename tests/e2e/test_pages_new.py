"""The editor of a new study, and the whole way: written on the page, trained by a real worker, flagged, extended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from browsing import until
from feeding import Server
from processes import House

pytestmark = pytest.mark.browser

NARROW = """name: narrow
objective:
  kind: train
  data: {source: digits, validation: 360}
  model: {kind: mlp, hidden: [32]}
metric: {name: val_accuracy, direction: maximize}
space:
  lr: {type: float, low: 1.0e-6, high: 1.0e-3, log: true}
  reg: {type: float, low: 1.0e-5, high: 1.0e-1, log: true}
stages:
  - {name: coarse, trials: 40, epochs: 2}
"""


@pytest.fixture
def own_page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def write(page: Page, text: str) -> None:
    page.get_by_label("The study as YAML").fill(text)


def test_the_wrong_line_is_marked_while_one_writes(page: Page) -> None:
    page.goto("/new")
    submit = page.get_by_role("button", name="Submit")
    write(page, NARROW)
    expect(page.locator("#verdict")).to_have_text("narrow can be submitted.")
    expect(page.locator("#cost")).to_have_text("80")
    expect(submit).to_be_enabled()
    write(page, NARROW.replace("  reg: {type", "  rge: {type"))
    expect(page.locator("#verdict")).to_have_text("1 place is wrong.")
    expect(page.locator(".gutter .wrong")).to_have_text("9")
    expect(page.locator("#errors")).to_contain_text("unknown parameter 'rge'; did you mean 'reg'?")
    expect(submit).to_be_disabled()
    write(page, NARROW + "stages: []\n")
    expect(page.locator(".gutter .wrong")).to_have_text("12")
    expect(page.locator("#errors")).to_contain_text("stands twice")


def test_keys_and_words_are_proposed(page: Page) -> None:
    page.goto("/new")
    page.wait_for_load_state("networkidle")
    write(page, "")
    editor = page.get_by_label("The study as YAML")
    options = page.locator("#suggestions [role=option]")
    editor.press_sequentially("met")
    expect(options).to_have_count(1)
    editor.press("Enter")
    expect(editor).to_have_value("metric: ")
    editor.press_sequentially("{direction: ")
    editor.press("Control+Space")
    expect(options).to_have_count(2)
    editor.press("ArrowDown")
    editor.press("Enter")
    expect(editor).to_have_value(re.compile(r"metric: \{direction: (maximize|minimize)$"))
    write(page, "stages:\n  - {name: a, ")
    editor.press("End")
    editor.press("Control+End")
    editor.press_sequentially("samp")
    expect(options).to_have_text([re.compile("^sampler")])
    editor.press("Escape")
    expect(page.locator("#suggestions")).to_be_hidden()


def test_every_example_can_be_submitted(page: Page) -> None:
    page.goto("/new")
    choice = page.get_by_label("Start from")
    names = [text for text in choice.locator("option").all_text_contents() if text != "nothing"]
    assert {"digits", "cifar10", "my resnet"} <= set(names)
    for name in names:
        choice.select_option(label=name)
        expect(page.locator("#verdict")).to_have_text(re.compile("can be submitted"))


def test_a_study_is_cloned(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(notes="as before")
    page.goto(f"/studies/{study}")
    page.get_by_role("link", name="Clone").click()
    editor = page.get_by_label("The study as YAML")
    expect(editor).to_have_value(re.compile(f"^name: {study}-2\nnotes: as before\n"))
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(f"**/studies/{study}-2")


def test_a_name_that_is_taken_is_said(page: Page, make_study: Callable[..., str], trouble: list[str]) -> None:
    study = make_study()
    page.goto("/new")
    write(page, NARROW.replace("name: narrow", f"name: {study}"))
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#problem")).to_contain_text(f"{study!r}")
    trouble[:] = [text for text in trouble if "409" not in text]


def test_from_the_editor_to_the_extended_stage(house: House, sqlite_url: str, own_page: Page) -> None:
    """Written here, trained by a real worker, flagged, and searched past its border by one click."""
    page = own_page
    _, client = house.serve(sqlite_url)
    house.worker(client, "w", "--pack", "8")
    page.goto(f"{client.server}/new")
    write(page, NARROW)
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/studies/narrow")
    expect(page.locator("#checks-title")).to_contain_text("passed", timeout=60_000)
    page.locator("[data-figure=axis]").scroll_into_view_if_needed()
    points = "document.querySelector('[data-figure=axis] .plot-area')._fullData?.[0]?.x?.length ?? 0"
    until(page, f"{points} > 0", timeout_seconds=60)
    expect(page.locator("#conclusion .advice")).to_contain_text("Widen lr to", timeout=60_000)
    narrow = float(client.study("narrow").read()["best"]["value"])
    page.get_by_role("button", name="Open coarse-wider").click()
    row = page.locator(".stages tbody tr", has_text="coarse-wider")
    expect(row).to_contain_text("inherited")
    expect(page.locator("#summary .sentence .badge")).to_have_text("completed", timeout=60_000)
    expect(row).to_contain_text(re.compile(r"(\d+) / \1"))
    assert float(client.study("narrow").read()["best"]["value"]) > narrow
    page.goto(f"{client.server}/workers")
    width = int(page.get_by_role("row", name=re.compile("^w ")).get_by_role("cell").nth(2).inner_text())
    assert width > 1, "what the worker measured for its pack"


def test_the_editor_is_for_this_server_alone(page: Page, server: Server) -> None:
    page.goto("/new")
    policy = page.evaluate("fetch('/new').then(r => r.headers.get('content-security-policy'))")
    assert "script-src 'self'" in policy
    assert "unsafe-eval" not in policy
