"""The pages in a real Chromium, over a real server whose trials arrive over HTTP."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from browsing import until
from feeding import Server

pytestmark = pytest.mark.browser

POINTS = """kind => document.querySelector(`[data-figure=${kind}] .plot-area`)._fullData
  ?.filter(trace => trace.customdata).reduce((n, trace) => n + trace.x.length, 0) ?? 0"""


def drawn(page: Page, kind: str = "map") -> None:
    """Figures are drawn when they come into view."""
    page.locator(f"[data-figure={kind}]").scroll_into_view_if_needed()
    page.wait_for_selector(f"[data-figure={kind}][data-drawn]", state="attached")


X_RANGE = "document.querySelector('[data-figure=map] .plot-area')._fullLayout.xaxis.range"


def zoom(page: Page) -> list[float]:
    """Drag a box over the middle of the map; returns the range of x that it leaves."""
    page.locator("[data-figure=map]").scroll_into_view_if_needed()
    before = page.evaluate(X_RANGE)
    box = page.locator("[data-figure=map] .nsewdrag").first.bounding_box()
    assert box is not None
    x, y, width, height = box["x"], box["y"], box["width"], box["height"]
    page.mouse.move(x + 0.3 * width, y + 0.2 * height)
    page.mouse.down()
    page.mouse.move(x + 0.5 * width, y + 0.5 * height, steps=4)
    page.mouse.move(x + 0.7 * width, y + 0.6 * height, steps=4)
    page.mouse.up()
    until(page, f"before => {X_RANGE}[0] > before[0] + 0.5", before)
    page.wait_for_timeout(400)  # the end of Plotly's transition
    after: list[float] = page.evaluate(X_RANGE)
    return after


def wait_for_points(page: Page, n: int, kind: str = "map") -> None:
    until(page, f"([kind, n]) => ({POINTS})(kind) === n", [kind, n])


def test_points_arrive_without_a_reload(page: Page, server: Server, make_study: Callable[..., str]) -> None:
    study = make_study(10)
    page.goto(f"/studies/{study}?state=completed")
    drawn(page)
    # Ten trials, and the best three again as stars.
    wait_for_points(page, 13)
    expect(page.locator("#progress-text")).to_have_text("10 of 60 trials finished")
    page.evaluate("window.sameDocument = true")
    zoomed = zoom(page)

    server.feed(study, 6)

    wait_for_points(page, 19)
    expect(page.locator("#progress-text")).to_have_text("16 of 60 trials finished")
    expect(page.locator(".matching")).to_have_text("16 trials")
    assert page.evaluate("window.sameDocument") is True
    assert page.evaluate(X_RANGE) == zoomed


def test_every_figure_is_drawn_when_it_comes_into_view(page: Page, make_study: Callable[..., str]) -> None:
    page.goto(f"/studies/{make_study(8)}")
    for kind, n in (("map", 11), ("axis", 22), ("curves", 16), ("history", 8 + 1)):
        page.locator(f"[data-figure={kind}]").scroll_into_view_if_needed()
        drawn(page, kind)
        if kind != "history":  # its line has a point for each improvement
            wait_for_points(page, n, kind)
    page.locator("[data-figure=map]").scroll_into_view_if_needed()
    page.locator("[data-figure=map] select[data-query=x]").select_option("reg")
    area = "document.querySelector('[data-figure=map] .plot-area')"
    titles = f"(l => [l.xaxis.title.text, l.yaxis.title.text].join())({area}._fullLayout)"
    until(page, f"{titles} === 'reg (log scale),lr (log scale)'")  # they change places


def test_running_trials_show_and_their_curves_move(page: Page, server: Server, make_study: Callable[..., str]) -> None:
    study = make_study(4)
    leases = server.lease(study, 2)
    page.goto(f"/studies/{study}")
    drawn(page)
    wait_for_points(page, 4 + 3 + 2)
    page.locator("[data-figure=curves]").scroll_into_view_if_needed()
    wait_for_points(page, 8, "curves")
    reports = [{"token": lease["token"], "step": 1, "metrics": {"score": 0.5}} for lease in leases]
    server.post("/leases/report", {"worker": "tester", "reports": reports})
    wait_for_points(page, 10, "curves")
    server.finish(leases)


def test_the_table_sorts_and_filters_without_a_reload(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(30, trials=30)
    page.goto(f"/studies/{study}")
    page.evaluate("window.sameDocument = true")
    rows = page.locator(".trials tbody tr")
    expect(rows).to_have_count(25)
    header = page.get_by_role("columnheader", name="Trial", exact=True)
    header.get_by_role("link").click()
    expect(header).to_have_attribute("aria-sort", "descending")
    expect(rows.first.locator("a")).to_have_text("29")
    header.get_by_role("link").click()
    expect(header).to_have_attribute("aria-sort", "ascending")
    expect(rows.first.locator("a")).to_have_text("0")

    page.get_by_label("State").select_option("diverged")
    expect(rows).to_have_text(["No trial matches."])
    assert "state=diverged" in page.url
    assert page.evaluate("window.sameDocument") is True


def numbers(page: Page) -> list[int]:
    return [int(text) for text in page.locator(".trials tbody td:first-child a").all_text_contents()]


def scroll(page: Page, to: int) -> None:
    page.locator(".rows").evaluate("(box, to) => { box.scrollTop = to; }", to)


def test_the_table_is_fetched_while_one_scrolls_and_few_rows_are_there(
    page: Page, make_study: Callable[..., str]
) -> None:
    study = make_study(400, trials=400)
    page.goto(f"/studies/{study}?sort=number")
    assert numbers(page) == list(range(25))
    expect(page.locator("table.trials")).to_have_attribute("aria-rowcount", "401")
    while not page.get_by_role("link", name="399", exact=True).count():
        scroll(page, 10**6)
        page.wait_for_timeout(30)
    shown = numbers(page)
    assert shown == list(range(shown[0], 400)), "no gap, and none twice"
    assert len(shown) <= 200
    last = page.locator(".trials tr", has=page.get_by_role("link", name="399", exact=True))
    expect(last).to_have_attribute("aria-rowindex", "401")
    scroll(page, 0)
    expect(page.get_by_role("link", name="0", exact=True)).to_be_visible()
    until(page, "!document.querySelector('.trials').textContent.includes('399')")
    assert numbers(page)[:25] == list(range(25))


def test_a_table_scrolled_to_a_place_stays_there_when_trials_arrive(
    page: Page, server: Server, make_study: Callable[..., str]
) -> None:
    study = make_study(200, trials=300)
    page.goto(f"/studies/{study}?sort=number&state=completed")
    while not page.get_by_role("link", name="120", exact=True).count():
        scroll(page, 10**6)
        page.wait_for_timeout(30)
    place = page.get_by_role("link", name="120", exact=True)
    place.focus()
    before = place.bounding_box()
    server.feed(study, 10)
    expect(page.locator(".matching")).to_have_text("210 trials")
    page.wait_for_timeout(300)
    after = place.bounding_box()
    assert before is not None
    assert after is not None
    assert after["y"] == pytest.approx(before["y"], abs=2)  # the place scrolled to is kept in whole pixels
    expect(place).to_be_focused()


def test_arrow_keys_go_from_row_to_row(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(60, trials=60)
    page.goto(f"/studies/{study}?sort=number")
    page.locator(".rows").focus()
    for _ in range(31):
        page.keyboard.press("ArrowDown")
        page.wait_for_timeout(30)
    expect(page.get_by_role("link", name="30", exact=True)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("link", name="29", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/studies/{study}/trials/29")


def test_a_click_on_a_row_opens_the_trial(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(5)
    page.goto(f"/studies/{study}?sort=number")
    page.locator(".trials tbody tr").nth(3).locator("td").nth(4).click()
    page.wait_for_url(f"**/studies/{study}/trials/3")
    expect(page.get_by_role("heading", level=1)).to_have_text("Trial 3")
    expect(page.locator(".params tbody tr")).to_have_count(2)
    expect(page.get_by_text("tester")).to_be_visible()
    drawn(page, "curves")


def test_the_theme_follows_the_system_and_the_button(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(3)
    page.goto(f"/studies/{study}")
    drawn(page)
    background = "getComputedStyle(document.body).backgroundColor"
    font = "document.querySelector('[data-figure=map] .plot-area')._fullLayout.font.color"
    assert (page.evaluate(background), page.evaluate(font)) == ("rgb(246, 247, 249)", "rgb(26, 33, 41)")
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(background) == "rgb(15, 19, 24)"
    until(page, f"{font} === 'rgb(230, 234, 240)'")
    page.reload()
    assert page.evaluate(background) == "rgb(15, 19, 24)"


def test_a_new_study_appears_in_the_list(page: Page, make_study: Callable[..., str]) -> None:
    page.goto("/")
    name = make_study()
    expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()


def test_pause_resume_and_cancel(page: Page, make_study: Callable[..., str]) -> None:
    page.goto(f"/studies/{make_study(2)}")
    state = page.locator("#summary .sentence .badge")
    expect(state).to_have_text("running")
    page.get_by_role("button", name="Pause").click()
    expect(state).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(state).to_have_text("running")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Keep it").click()
    expect(state).to_have_text("running")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the study").click()
    expect(state).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Cancel…")).to_be_hidden()


def test_what_users_type_is_never_markup(page: Page, make_study: Callable[..., str]) -> None:
    notes = "<img src=x onerror='window.hacked = true'><b>bold</b>"
    page.goto(f"/studies/{make_study(notes=notes)}")
    expect(page.locator(".notes")).to_have_text(notes)
    assert page.evaluate("window.hacked") is None


def test_an_empty_study_says_so(page: Page, make_study: Callable[..., str]) -> None:
    page.goto(f"/studies/{make_study()}")
    drawn(page)
    expect(page.locator("[data-figure=map] .plot-note")).to_have_text("No trial has finished yet.")


def test_workers_are_listed(page: Page, make_study: Callable[..., str]) -> None:
    make_study(1)
    page.goto("/workers")
    expect(page.get_by_role("rowheader", name="tester")).to_be_visible()


def test_a_phone_scrolls_in_one_direction_only(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(3)
    page.set_viewport_size({"width": 390, "height": 800})
    for path in ("/", f"/studies/{study}", f"/studies/{study}/trials/0", "/workers"):
        page.goto(path)
        page.wait_for_load_state("load")
        assert page.evaluate("document.documentElement.scrollWidth") == 390, path


def test_what_is_not_there_has_a_page(page: Page, trouble: list[str]) -> None:
    response = page.goto("/studies/nowhere")
    assert response is not None
    assert response.status == 404
    expect(page.get_by_text("there is no study 'nowhere'")).to_be_visible()
    # The browser itself reports the status of the document.
    trouble[:] = [text for text in trouble if "404" not in text]


def test_a_lost_server_is_said_and_found_again(
    page: Page, server: Server, make_study: Callable[..., str], trouble: list[str]
) -> None:
    study = make_study(3)
    page.goto(f"/studies/{study}")
    drawn(page)
    connection = page.locator("#connection")
    server.stop()
    expect(connection).to_have_text("Connection lost, trying again…")
    server.start()
    expect(connection).to_have_text("Connected again", timeout=30_000)
    server.feed(study, 2)
    expect(page.locator("#progress-text")).to_have_text("5 of 60 trials finished")
    trouble[:] = [text for text in trouble if "ERR_CONNECTION_REFUSED" not in text and "ERR_INCOMPLETE" not in text]
