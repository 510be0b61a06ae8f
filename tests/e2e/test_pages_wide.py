"""Many trials, hostile names, every page through axe in both themes, and nothing that the policy forbids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, expect

from browsing import until
from feeding import Server

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror='window.hacked=1'>%{x}</script>"
N_MANY = 10_000


@lru_cache(maxsize=1)
def axe() -> str:
    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()


def violations(page: Page) -> list[str]:
    """What axe finds on the page, that is serious or critical."""
    page.evaluate(axe())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


@pytest.fixture(scope="module")
def whole(server: Server) -> str:
    """A study with flags, stages, finalists, and one that is compared with it."""
    stages = [{"name": "coarse", "trials": 40, "epochs": 2}, {"name": "confirm", "top": 3, "seeds": 2, "epochs": 2}]
    server.submit("whole", stages=stages, tags=["one"], notes="Some notes.")
    server.feed("whole", 40)
    server.feed("whole", 6)
    server.submit("other", tags=["two"])
    server.feed("other", 12)
    server.lease("other", 2)
    return "whole"


@pytest.fixture(params=["light", "dark", "light phone", "dark phone"])
def themed(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Page]:
    theme, _, is_phone = request.param.partition(" ")
    context = browser.new_context(
        base_url=server.url,
        color_scheme=theme,
        viewport={"width": 390, "height": 844} if is_phone else {"width": 1280, "height": 900},
        bypass_csp=True,  # axe is put in from here
    )
    yield context.new_page()
    context.close()


PAGES = [
    "/",
    "/new",
    "/studies/whole",
    "/studies/other",
    "/studies/whole/trials/3",
    "/studies/whole/figures/axis",
    "/login",
    "/compare?study=whole&study=other",
    "/workers",
    "/studies/nowhere",
]


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious(themed: Page, whole: str, path: str) -> None:
    themed.goto(path)
    themed.wait_for_load_state("networkidle")
    for figure in themed.locator("figure").all():
        figure.scroll_into_view_if_needed()
    themed.wait_for_timeout(800)
    for closed in themed.locator("details").all():
        closed.evaluate("box => { box.open = true; }")
    assert violations(themed) == []
    assert themed.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls in one direction only"


def test_a_page_is_printed_whole_light_and_without_what_is_for_the_hand(
    browser: Browser, server: Server, whole: str
) -> None:
    context = browser.new_context(base_url=server.url, color_scheme="dark")
    page = context.new_page()
    page.goto(f"/studies/{whole}")
    page.locator("[data-figure=axis]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=axis][data-drawn]")
    page.emulate_media(media="print")
    look = "(name, property) => getComputedStyle(document.querySelector(name))[property]"
    seen = page.evaluate(
        f"""names => {{ const look = {look};
        return names.map(name => look(name, 'display')) }}""",
        [".top", "#actions", ".filters", ".jump", ".tools"],
    )
    assert seen == ["none"] * 5
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(f"({look})('.rows', 'maxHeight')") == "none"
    assert page.evaluate(f"({look})('[data-figure=axis] .xtick text', 'fill')") == "rgb(26, 33, 41)"  # figures, too
    expect(page.locator("#conclusion")).to_be_visible()
    assert page.pdf()[:4] == b"%PDF"
    context.close()


def test_every_action_is_reached_with_the_keyboard(page: Page, whole: str) -> None:
    page.goto(f"/studies/{whole}")
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    wanted = {"Clone", "Delete…", "Acknowledge…"}
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert wanted <= seen
    page.get_by_role("button", name="Delete…").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_studies_are_found_by_word_state_and_tag(page: Page, whole: str) -> None:
    page.goto("/?tag=two")
    expect(page.locator(".study-row")).to_have_count(1)
    page.locator("select[name=tag]").select_option("")
    page.get_by_label("Find").fill("some notes")
    page.get_by_label("Find").press("Enter")
    expect(page.locator(".study-row h2")).to_have_text([whole])
    page.locator("select[name=state]").select_option("running")
    expect(page.get_by_text("No study matches")).to_be_visible()


def test_chosen_studies_are_compared(page: Page, whole: str) -> None:
    page.goto("/?q=")
    compare = page.get_by_role("button", name="Compare chosen")
    expect(compare).to_be_disabled()
    for name in ("whole", "other"):
        page.get_by_label(f"Choose {name} for a comparison").check()
    page.wait_for_timeout(3500)  # the list is fetched again; what is chosen stays
    compare.click()
    page.wait_for_url("**/compare?**")
    page.wait_for_selector("[data-figure=compare][data-drawn]")
    assert page.evaluate("document.querySelector('.plot-area')._fullData.length") == 2
    expect(page.get_by_role("rowheader", name="stages.1.top")).to_be_visible()
    expect(page.get_by_role("rowheader", name="metric.name")).to_have_count(0)


def test_ten_thousand_trials_are_never_all_loaded(
    page: Page, server: Server, make_study: Callable[..., str], trouble: list[str]
) -> None:
    study = make_study(trials=10)
    lrs = [10 ** (-6 + 4 * (n % 997) / 997) for n in range(2 * N_MANY)]
    for first in range(0, 2 * N_MANY, 5000):
        given = [{"params": {"lr": lr, "reg": 1.0}, "value": lr} for lr in lrs[first : first + 5000]]
        server.post(f"/studies/{study}/trials", {"trials": given})
    sizes: list[int] = []
    page.on(
        "response", lambda r: sizes.append(len(r.body())) if study in r.url and r.ok and "events" not in r.url else None
    )
    page.goto(f"/studies/{study}")
    page.locator("[data-figure=axis]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=axis][data-drawn]")
    expect(page.locator("[data-figure=axis] .plot-note")).to_contain_text("of 20,000 trials drawn")
    until(page, "document.querySelector('[data-figure=axis] .plot-area')._fullData[0].type === 'scattergl'")
    expect(page.locator(".trials tbody tr")).to_have_count(25)
    expect(page.locator(".matching")).to_have_text("20,000 trials")
    expect(page.locator("#flags-title")).to_be_visible(timeout=60_000)  # worked out after the first paint
    assert 0 < max(sizes) < 1_500_000  # bytes, packed


@pytest.fixture(scope="module")
def hostile(server: Server) -> str:
    """A study in which everything that a user or worker can name is hostile."""
    space = {
        "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
        HOSTILE: {"type": "float", "low": 0.0, "high": 1.0},
        "choice": {"type": "categorical", "choices": [HOSTILE, "b"]},
    }
    more: dict[str, Any] = {"space": space, "tags": [HOSTILE[:50]]}
    server.submit("hostile", trials=40, notes=HOSTILE, **more)
    server.feed("hostile", 30)
    leases = server.lease("hostile", 5)
    reports = [{"token": leases[0]["token"], "step": 1, "metrics": {"score": 0.1, HOSTILE: 1.0}}]
    server.post("/leases/report", {"worker": "tester", "reports": reports})
    server.post("/leases/log", {"worker": "tester", "logs": [{"token": leases[0]["token"], "text": HOSTILE}]})
    results = [{"token": lease["token"], "state": "diverged", "reason": HOSTILE} for lease in leases[:4]]
    server.post("/leases/finish", {"worker": "tester", "results": results})
    ask = {"worker": HOSTILE, "capacity": 1, "study": "hostile", "info": {HOSTILE: HOSTILE, "host": HOSTILE}}
    server.post("/leases", ask)
    border = {"stage": "coarse", "parameter": HOSTILE, "side": "low", "note": HOSTILE}
    server.post("/studies/hostile/flags/acknowledge", border)
    return "hostile"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/studies/hostile",
        "/studies/hostile?within=value:0:1&state=diverged",
        "/studies/hostile/trials/30",
        "/studies/hostile/trials/35",
        "/studies/hostile/figures/curves",
        "/compare?study=hostile&study=whole",
        "/workers",
        "/new?from=hostile",
    ],
)
def test_nothing_that_is_typed_is_markup(page: Page, hostile: str, whole: str, path: str) -> None:
    page.goto(path)
    page.wait_for_load_state("load")
    for figure in page.locator("figure").all():
        figure.scroll_into_view_if_needed()
        if box := figure.locator(".nsewdrag").first.bounding_box() if figure.locator(".nsewdrag").count() else None:
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(600)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0
    if path.endswith("/30"):
        expect(page.locator(".log")).to_have_text(HOSTILE)
    if "hostile" in path and "figures" not in path:
        assert "onerror" in (page.content() if "/new" not in path else json.dumps(page.locator("#text").input_value()))


def test_the_policy_allows_no_inline_script_and_no_foreign_origin(page: Page, whole: str) -> None:
    for path in PAGES[:-1]:
        response = page.goto(path)
        assert response is not None
        policy = response.headers["content-security-policy"]
        scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
        assert scripts == "script-src 'self'"
        assert "style-src 'self';" in policy
        assert "http" not in policy
        assert page.locator("script:not([src])").count() == 0
        assert page.locator("main [style]:not(.plot-area, .plot-area *)").count() == 0
