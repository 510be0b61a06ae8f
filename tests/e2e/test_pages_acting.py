"""What a user does on the page of a study: acknowledge a flag, open a proposed stage, brush, delete."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from browsing import until
from feeding import Server

pytestmark = pytest.mark.browser


@pytest.fixture
def flagged(page: Page, server: Server, make_study: Callable[..., str]) -> str:
    """A study on its page: its best trials crowd at the high border of lr, and the flag arrived while it was open."""
    study = make_study(4, trials=40)
    page.goto(f"/studies/{study}")
    expect(page.locator("#flags-title")).to_have_count(0)
    server.feed(study, 36)
    expect(page.locator("#conclusion")).to_contain_text("lr lies at the upper border of its range, p = ")
    expect(page.locator("#conclusion .advice")).to_have_text("Widen lr to 1.")
    return study


def test_a_flag_is_acknowledged_and_taken_back(page: Page, server: Server, flagged: str) -> None:
    flags = page.locator(".flags")
    flags.get_by_text("Acknowledge…").click()
    note = "<b>fine</b> with me"
    flags.get_by_label("Note").fill(note)
    flags.get_by_role("button", name="Acknowledge").click()
    expect(flags.get_by_text(note)).to_be_visible()
    expect(page.locator("#conclusion")).to_contain_text("acknowledged")
    expect(page.get_by_role("button", name="Open coarse-wider")).to_have_count(0)
    assert server.get(f"/studies/{flagged}/flags")["items"][0]["acknowledged"]["note"] == note
    flags.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Open coarse-wider")).to_be_visible()


def test_a_proposed_stage_is_changed_and_opened(page: Page, server: Server, flagged: str, trouble: list[str]) -> None:
    form = page.locator("form[data-open=coarse-wider]")
    form.get_by_text("Change it first").click()
    form.get_by_label("Trials").fill("9")
    expect(form.locator("[data-cost]")).to_have_text("18")
    form.get_by_label("lr to").fill("much")
    form.get_by_role("button", name="Open coarse-wider").click()
    expect(form.get_by_role("alert")).to_have_text("lr, high: much is no number.")
    form.get_by_label("lr to").fill("1e-6")
    form.get_by_role("button", name="Open coarse-wider").click()
    expect(form.get_by_role("alert")).to_contain_text("lr")
    form.get_by_label("lr to").fill("0.5")
    form.get_by_role("button", name="Open coarse-wider").click()
    row = page.locator(".stages tbody tr", has_text="coarse-wider")
    expect(row).to_contain_text("0 / 9")
    expect(row).to_contain_text("inherited")
    expect(row).to_contain_text("to 0.5")
    expect(page.locator("#summary .sentence .badge")).to_have_text("running")
    server.feed(flagged, 9)
    expect(row).to_contain_text("9 / 9")
    trouble[:] = [text for text in trouble if "422" not in text]


def test_what_is_written_survives_what_arrives(page: Page, server: Server, make_study: Callable[..., str]) -> None:
    study = make_study(40, trials=60)
    page.goto(f"/studies/{study}")
    page.get_by_text("Acknowledge…").click()
    note = page.get_by_label("Note")
    note.press_sequentially("half a th")
    server.feed(study, 3)
    expect(page.locator("#progress-text")).to_have_text("43 of 60 trials finished")
    expect(note).to_be_focused()
    note.press_sequentially("ought")
    expect(note).to_have_value("half a thought")


def brush_first_axis(page: Page, *, top: float, bottom: float) -> None:
    """Draw a box over the first of three axes of the parallel coordinates, which goes from 0 to 1."""
    figure = page.locator("[data-figure=parallel]")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("[data-figure=parallel][data-drawn]")
    area = figure.locator(".nsewdrag").first.bounding_box()
    assert area is not None
    x0 = area["x"] + area["width"] * 0.35 / 2.7  # axes stand at 0, 1, 2 of a range from -0.35 to 2.35
    y = [area["y"] + area["height"] * (1.14 - place) / 1.18 for place in (top, bottom)]
    page.mouse.move(x0 - 30, y[0])
    page.mouse.down()
    page.mouse.move(x0, y[1] - 10, steps=5)
    page.mouse.move(x0 + 30, y[1], steps=5)
    page.mouse.up()


def test_a_brush_filters_the_table_and_a_row_opens(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(40, trials=40)
    page.goto(f"/studies/{study}")
    brush_first_axis(page, top=1.05, bottom=0.5)
    chip = page.locator(".chip")
    expect(chip).to_contain_text("lr")
    shown = page.locator(".trials tbody tr")
    until(page, "document.querySelectorAll('.trials tbody tr').length < 25")
    values = [float(text) for text in shown.locator("td:nth-child(3)").all_text_contents()]
    # The middle of 1e-6 to 1e-2 on a log scale is 1e-4; the mouse is exact to a pixel.
    assert values
    assert min(values) > 0.9e-4
    chip.get_by_role("link").click()
    expect(shown).to_have_count(25)
    shown.first.locator("td").nth(3).click()
    page.wait_for_url(f"**/studies/{study}/trials/*")


def test_a_brush_over_an_axis_of_choices_filters_by_them(
    page: Page, server: Server, make_study: Callable[..., str]
) -> None:
    choices = ["relu", "tanh", [1, "x:y"], True]
    space = {
        "act": {"type": "categorical", "choices": choices},
        "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    }
    study = make_study(space=space, trials=40)
    given = [{"params": {"act": choice, "lr": 1e-4}, "value": 0.5} for choice in choices]
    server.post(f"/studies/{study}/trials", {"trials": given})
    page.goto(f"/studies/{study}")
    # Choices stand at 1/8, 3/8, 5/8, 7/8 of the first axis, that of act: a box from 0.3 to 1 holds all but relu.
    brush_first_axis(page, top=1.0, bottom=0.3)
    expect(page.locator(".chip")).to_contain_text("tanh, [1, x:y], true")
    cells = page.locator(".trials tbody td:nth-child(3)")
    expect(cells).to_have_count(3)
    assert set(cells.all_text_contents()) == {"tanh", "[1, x:y]", "true"}
    page.locator(".chip a").click()
    expect(cells).to_have_count(4)


def test_ranges_can_be_typed(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(20, trials=20)
    page.goto(f"/studies/{study}")
    page.get_by_text("Range", exact=True).click()
    page.get_by_label("From", exact=True).fill("1e-4")
    page.get_by_label("To", exact=True).fill("1e-2")
    page.locator("[name=range_of]").select_option("lr")
    expect(page.locator(".chip")).to_contain_text("lr")
    values = page.locator(".trials tbody td:nth-child(3)").all_text_contents()
    assert all(float(value) >= 0.99e-4 for value in values)


def test_deleting_asks_first(page: Page, server: Server, make_study: Callable[..., str]) -> None:
    study = make_study(2, trials=2)
    page.goto(f"/studies/{study}")
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Keep it").click()
    assert server.get(f"/studies/{study}")["state"] == "completed"
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete the study").click()
    page.wait_for_url("**/")
    expect(page.get_by_role("link", name=study, exact=True)).to_have_count(0)


def test_a_problem_is_said_in_words(
    page: Page, server: Server, make_study: Callable[..., str], trouble: list[str]
) -> None:
    study = make_study(2, trials=4)
    page.goto(f"/studies/{study}")
    page.wait_for_load_state("networkidle")
    page.evaluate("study => fetch(`/api/v1/studies/${study}/cancel`, {method: 'POST'})", study)
    page.evaluate("document.querySelector('[data-action=pause]').hidden = false")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#problem")).to_contain_text("has ended as cancelled")
    trouble[:] = [text for text in trouble if "409" not in text]


def test_a_figure_is_saved_as_picture_and_as_numbers(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(5)
    page.goto(f"/studies/{study}/figures/history")
    page.wait_for_selector("figure[data-drawn]")
    found = {}
    for form in ("PNG", "SVG", "CSV"):
        with page.expect_download() as waited:
            page.get_by_role("button", name=f"as {form}").click()
        found[form] = waited.value.path().read_bytes()
        assert waited.value.suggested_filename == f"{study}-history.{form.lower()}"
    assert found["PNG"].startswith(b"\x89PNG")
    assert b"<svg" in found["SVG"]
    rows = found["CSV"].decode().splitlines()
    assert rows[0] == "series,trial,x,y"
    assert [row.split(",")[:3] for row in rows if row.startswith("coarse")] == [
        ["coarse", str(n), str(n)] for n in range(5)
    ]


def test_the_address_of_a_figure_holds_its_view(page: Page, make_study: Callable[..., str]) -> None:
    study = make_study(8)
    page.goto(f"/studies/{study}")
    figure = page.locator("[data-figure=map]")
    figure.scroll_into_view_if_needed()
    figure.locator("select[data-query=x]").select_option("reg")
    figure.get_by_role("link", name="Link").click()
    page.wait_for_url("**/figures/map?x=reg&y=lr")
    page.wait_for_selector("figure[data-drawn]")
    page.evaluate("Plotly.relayout(document.querySelector('.plot-area'), {'xaxis.range': [-1, 1]})")
    page.wait_for_url("**xaxis=-1.00000,1.00000**")
    page.reload()
    page.wait_for_selector("figure[data-drawn]")
    layout = "document.querySelector('.plot-area')._fullLayout.xaxis"
    assert page.evaluate(f"[{layout}.title.text, ...{layout}.range]") == ["reg (log scale)", -1, 1]
