"""``hpsearch init``, and the study that it writes run to its end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from hpsearch.spec import load_study
from processes import House


def shorten(study: Path) -> None:
    """Fewer trials of the study as it was written."""
    document = yaml.safe_load(study.read_text())
    for stage in document["stages"]:
        stage["epochs"] = 2
        stage.update({"top": 1, "seeds": 2} if "top" in stage else {"trials": 4})
    study.write_text(yaml.safe_dump(document))


def init(house: House, *arguments: str, status: int = 0) -> str:
    process = house.run("init", *arguments)
    assert process.popen.wait(60) == status, process.output
    assert "Traceback" not in process.output
    return process.output


def runs(house: House, study: str) -> None:
    shorten(house.folder / study)
    run = house.run("run", study, "--workers", "1", "--port", "0", "--json")
    assert run.popen.wait(120) == 0, run.output
    assert json.loads(run.output)["state"] == "completed"


def test_a_table_in_this_folder(house: House) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    rows = [f"{a:.4f},{b:.4f},{c:.4f},{'up' if a + b > 0 else 'down'}" for a, b, c in x]
    (house.folder / "moves.csv").write_text("\n".join(["a,b,c,move", *rows]) + "\n")
    said = init(house)
    assert "saw moves.csv: 200 samples of 3 features, 2 classes of" in said
    assert "mind: the label is taken to be the last column, 'move': --label names another" in said
    assert "next: hpsearch run study.yaml" in said
    written = (house.folder / "study.yaml").read_text()
    assert "study.yaml is there already" in init(house, status=2)
    assert (house.folder / "study.yaml").read_text() == written
    assert "unknown column 'mve'; did you mean 'move'" in init(house, "--label", "mve", "-o", "b.yaml", status=2)
    assert not (house.folder / "b.yaml").exists()
    runs(house, "study.yaml")


def test_numbers_to_predict(house: House) -> None:
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    np.savez(house.folder / "a.npz", x=x, y=100 * x[:, 0] + 7)
    document = json.loads(init(house, "a.npz", "-o", "a.yaml", "--name", "sums", "--json"))
    assert (document["name"], document["n_classes"], document["shape"]) == ("sums", 0, [3])
    runs(house, "a.yaml")


def test_a_folder_of_images(house: House) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (house.folder / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(level - 30, level + 30, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(house.folder / "photos" / name / f"{i}.png")
    said = init(house, "photos")
    assert "saw photos: 60 images of 16 × 16 × 1, 2 classes of 30 samples each" in said
    assert "copied the images into photos.parquet" in said
    assert load_study(house.folder / "study.yaml").name == "photos"
    runs(house, "study.yaml")


def test_digits_and_a_folder_without_data(house: House) -> None:
    assert "hpsearch init digits" in init(house, status=2)
    assert "1,797 images of 8 × 8 × 1, 10 classes" in init(house, "digits")
    runs(house, "study.yaml")
