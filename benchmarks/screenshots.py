"""Pictures of every page in both themes, of a study that a real worker trains: docs/images/.

python benchmarks/screenshots.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from hpsearch import Client

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PAGES = {
    "studies": "/",
    "new": "/new",
    "study": "/studies/digits",
    "figures": "/studies/digits",
    "trial": "/studies/digits/trials/{best}",
    "layers": "/studies/digits/trials/{best}",
    "trials": "/studies/digits",
    "compare": "/compare?study=digits&study=digits-wide",
    "workers": "/workers",
}
HEIGHTS = {"study": 1280, "figures": 1500, "trial": 1250, "compare": 1100, "layers": 900}
PLACES = {"figures": "figure", "layers": "[data-figure=layers]", "trials": "#trials-title"}
"""What is brought to the top of a picture; of others it is the page's own top."""


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "hpsearch", "serve", "--workers", "1", "--port", "0"]
        command += ["--store", f"sqlite:///{name}/s.db"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            found = None
            while found is None:
                found = re.search(r"serving (http://\S+)", server.stdout.readline())
            best = train(found.group(1))
            with sync_playwright() as playwright:
                installed = Path("/usr/bin/chromium")
                path = installed if installed.exists() else playwright.chromium.executable_path
                browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
                for theme in ("light", "dark"):
                    take(browser, found.group(1), theme, best)
                browser.close()
        finally:
            server.terminate()
            server.wait()


def train(url: str) -> int:
    """Train the example whose range is too narrow, and a second study to compare it with; returns the best trial."""
    import yaml

    client = Client(url)
    document = yaml.safe_load((ROOT / "examples" / "digits.yaml").read_text())
    wide = {
        **document,
        "name": "digits-wide",
        "tags": ["demo"],
        "notes": "The same with a range of lr that is wide enough.",
    }
    wide["space"] = {**document["space"], "lr": {**document["space"]["lr"], "high": 1.0}}
    digits = client.submit({**document, "tags": ["demo", "mlp"]})
    other = client.submit(wide)
    digits.wait()
    other.wait()
    best = digits.best
    assert best is not None
    trial: int = best["trial"]
    return trial


def take(browser: Browser, url: str, theme: str, best: int) -> None:
    for name, path in PAGES.items():
        size = {"width": 1280, "height": HEIGHTS.get(name, 820)}
        context = browser.new_context(base_url=url, viewport=size, color_scheme=theme)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(path.format(best=best))
        page.wait_for_load_state("load")
        settle(page, to=PLACES.get(name, "body"))
        page.screenshot(path=IMAGES / f"{name}-{theme}.png")
        print(IMAGES / f"{name}-{theme}.png")
        context.close()
    context = browser.new_context(base_url=url, viewport={"width": 390, "height": 844}, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto("/studies/digits")
    settle(page, to="body")
    page.screenshot(path=IMAGES / f"phone-{theme}.png")
    context.close()


def settle(page: Page, *, to: str) -> None:
    """Bring a place to the top, and wait until its figures are drawn; figures above it may move it when they are."""
    for _ in range(2):
        page.locator(to).first.evaluate("place => place.scrollIntoView()")
        page.evaluate("scrollBy(0, -70)")
        page.wait_for_timeout(2000)


if __name__ == "__main__":
    main()
