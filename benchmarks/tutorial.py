"""The pictures of docs/tutorial.md, of the studies that stand in it: docs/images/tutorial-*.svg.

    python -m benchmarks.tutorial data/cifar10              # four minutes on two cores
    python -m benchmarks.tutorial data/cifar10 three-rates  # the pictures of one study

Needs CIFAR-10's Parquet files and Chromium. A server and a worker per core train the studies of the page, and
examples/random_vs_grid.yaml, on the real data. Figures are those of the service, drawn by Plotly. Standard output has
the numbers for the text of the page.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.offline
import yaml
from playwright.sync_api import Page, sync_playwright

from hpsearch import Client

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 100_000
WIDTH = 760
PICTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rates": ("three-rates", "curves", {"metric": "train_loss"}),
    "twenty": ("twenty", "curves", {"metric": "train_accuracy"}),
    "random-against-grid": ("random-vs-grid", "axis", {"params": "lr,reg"}),
    "coarse-to-fine": ("two-layer", "axis", {"params": "lr,reg"}),
    "map": ("two-layer", "map", {}),
    "finalists": ("two-layer", "finalists", {}),
    "border": ("too-narrow", "axis", {"params": "lr"}),
}
"""Picture → study, kind of figure, what is asked of it."""
TO_SVG = """async figure => {
    const address = await Plotly.toImage(figure, {format: "svg"});
    return decodeURIComponent(address.slice(address.indexOf(",") + 1));
}"""
HEIGHTS = {"map": 480, "finalists": 320}


def documents(data: Path) -> list[dict[str, Any]]:
    """The studies of the page, over the data that are here."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml[^\n]*\n(.*?)```", text, re.DOTALL)]
    for document in found:
        document["objective"]["data"]["path"] = str(data)
    return [*found, yaml.safe_load((ROOT / "examples" / "random_vs_grid.yaml").read_text(encoding="utf-8"))]


def train(client: Client, document: dict[str, Any]) -> None:
    """Train a study; of the one that is too narrow, what is proposed then, too."""
    study = client.submit(document).wait()
    tell(study)
    if study.name == "too-narrow":
        print(json.dumps(study.open_stage()))
        tell(study.wait())


def tell(study: Any) -> None:
    document = study.read()
    verdicts = Counter(verdict["name"] for trial in study.trials() for verdict in trial["verdicts"])
    said = {
        "study": study.name,
        "best": document["best"],
        "flags": [flag["message"] for flag in document["flags"]],
        "stages": [[s["name"], s["counts"], s["space"]] for s in document["stages"]],
        "verdicts": verdicts,
        "preflight": {check["name"]: [check["message"], check["numbers"]] for check in study.preflight},
        "curves": {trial["number"]: study.metrics(trial["number"]) for trial in study.trials()[:3]},
    }
    print(json.dumps(said, default=str))


def draw(page: Page, figure: go.Figure, height: int | None) -> str:
    """A figure as SVG, for both themes: no background, and a grey that reads on either."""
    figure.update_layout(width=WIDTH, height=height or figure.layout.height, font={"color": "#808a96"})
    svg: str = page.evaluate(TO_SVG, json.loads(figure.to_json(engine="json")))
    return svg


def main() -> None:
    data, *wanted = sys.argv[1:]
    chosen = [each for each in documents(Path(data).resolve()) if not wanted or each["name"] in wanted]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hpsearch", "serve", "--workers", str(os.cpu_count()), "--port", "0"]
        command += ["--store", f"sqlite:///{folder}/s.db", "--data-root", "/"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            client = Client(server.stdout.readline().split()[1])
            for document in chosen:
                train(client, document)
            take(client, {document["name"] for document in chosen})
        finally:
            server.terminate()
            server.wait()


def take(client: Client, studies: set[str]) -> None:
    with sync_playwright() as playwright:
        installed = Path("/usr/bin/chromium")
        browser = playwright.chromium.launch(
            executable_path=installed if installed.exists() else playwright.chromium.executable_path,
            args=["--no-sandbox"],
        )
        page = browser.new_page()
        page.add_script_tag(content=plotly.offline.get_plotlyjs())
        for name, (study, kind, query) in PICTURES.items():
            if study not in studies:
                continue
            svg = draw(page, client.study(study).figure(kind, **query), HEIGHTS.get(name))
            path = IMAGES / f"tutorial-{name}.svg"
            path.write_text(svg, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {len(svg.encode()):,} bytes", file=sys.stderr)
            if len(svg.encode()) > MOST_BYTES:
                raise SystemExit(f"{name} is larger than {MOST_BYTES:,} bytes: draw less")
        browser.close()


if __name__ == "__main__":
    main()
