"""What the documents have their readers run: studies of the tutorial, and the client's code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import House, digits

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def on_digits(document: dict[str, Any]) -> dict[str, Any]:
    """A study of the tutorial as the page says to have it without CIFAR-10, and shorter."""
    data = document["objective"]["data"]
    document["objective"]["data"] = {"source": "digits", "validation": 360} | (
        {"train": 20} if data.get("train") == 20 else {}
    )
    lr = document["space"]["lr"]  # a thousand times higher
    for end in {"low", "high"} & set(lr):
        lr[end] *= 1000
    lr["choices"] = [1000 * choice for choice in lr.get("choices", [])]
    if not lr["choices"]:
        del lr["choices"]
    for stage in document["stages"]:
        stage["epochs"] = min(stage["epochs"], 3)
        stage.update({"top": 2, "seeds": 2} if "top" in stage else {"trials": min(stage["trials"], 8)})
    return document


def test_the_studies_of_the_tutorial_train_to_their_end(house: House, sqlite_url: str) -> None:
    _, client = house.serve(sqlite_url, "--workers", "1")
    studies = [client.submit(on_digits(yaml.safe_load(block))) for block in blocks("tutorial.md", "yaml")]
    assert [study.name for study in studies] == ["twenty", "three-rates", "two-layer", "too-narrow"]
    for study in studies:
        assert study.wait(timeout_seconds=120).state == "completed"
    verdicts = {v["name"] for trial in studies[1].trials() for v in trial["verdicts"]}
    assert {"diverged", "lr_too_low"} <= verdicts


@pytest.fixture
def server(house: House, sqlite_url: str) -> str:
    """A server with the studies that the pages speak of, over the ranges that ``hpsearch init digits`` writes."""
    _, client = house.serve(sqlite_url, "--workers", "1")
    for name in ("digits", "twenty"):
        stages = [{"name": "coarse", "trials": 400, "epochs": 2}]  # goes on while the code runs
        ends = {"lr": (1e-5, 1.0), "reg": (1e-6, 1.0)}
        space = {key: {"type": "float", "low": low, "high": high, "log": True} for key, (low, high) in ends.items()}
        client.submit(digits(name=name, space=space, stages=stages))
    return client.server


def test_code_for_the_client_runs(house: House, server: str) -> None:
    found = [block for page in ("how_to.md", "python.md", "tutorial.md") for block in blocks(page, "python")]
    assert len(found) == 4
    for block in found:
        code = block.replace("http://127.0.0.1:8765", server)
        environment = {**os.environ, "HPSEARCH_SERVER": server}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=house.folder, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
