from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpsearch.document import parse_yaml
from hpsearch.errors import InvalidInput, InvalidSpec
from hpsearch.objective import TrainObjective
from hpsearch.objective.models import MlpModel
from hpsearch.spec import StudySpec, load_study, parse_study

ROOT = Path(__file__).parents[2]

LECTURE = """
name: cifar10-two-layer
objective:
  kind: train
  data: {source: parquet, path: ../shared/data/cifar10, validation: 1000}
  preprocess: [zero_mean]
  model: {kind: mlp, hidden: [50], activation: relu, init: he, batch_norm: false, dropout: 0.0}
  optimizer: {kind: sgd, momentum: 0.9, lr_decay: 0.95}
  batch_size: 100
metric: {name: val_accuracy, direction: maximize}
space:
  lr:  {type: float, low: 1.0e-6, high: 1.0e-3, log: true}
  reg: {type: float, low: 1e-5, high: 1e+5, log: true}
stages:
  - {name: coarse, trials: 100, epochs: 1}
  - {name: fine, trials: 100, epochs: 5}
  - {name: confirm, top: 5, epochs: 10, seeds: 3}
seed: 0
"""


def lecture() -> dict[str, Any]:
    document: dict[str, Any] = parse_yaml(LECTURE)
    return document


def test_the_lectures_study_is_read_with_its_defaults() -> None:
    spec = parse_study(lecture())
    assert isinstance(spec.objective, TrainObjective)
    assert spec.objective.optimizer.lr_decay == 0.95
    assert spec.objective.regularization.l2 == 0.0
    reg = spec.space["reg"].model_dump(exclude_none=True)
    assert reg == {"type": "float", "low": 1e-5, "high": 1e5, "log": True}
    assert [stage.n_trials for stage in spec.stages] == [100, 100, 15]
    assert spec.stages[0].sampler.name == "random"


def test_json_is_read_as_yaml_is() -> None:
    spec = parse_study(lecture())
    assert parse_study(parse_yaml(spec.model_dump_json())) == spec


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    assert isinstance(load_study(path), StudySpec)


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        node: Any = document
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return change


def remove(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        node: Any = document
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "loc", "words"),
    [
        (put("stagse", value=1), "stagse", ["'stagse'", "did you mean 'stages'"]),
        (put("objective", "data", "pth", value=1), "objective.data.pth", ["did you mean 'path'"]),
        (put("objective", "data", "source", value="parqet"), "objective.data.source", ["did you mean 'parquet'"]),
        (put("objective", "kind", value="trian"), "objective.kind", ["did you mean 'train'"]),
        (remove("objective", "kind"), "objective.kind", ["missing"]),
        (put("objective", "model", "activation", value="rleu"), "objective.model.activation", ["'rleu'"]),
        (put("objective", "data", "validation", value=-3), "objective.data.validation", ["-3", "greater than"]),
        (put("space", "lr", "low", value=1.0), "space.lr", ["low 1.0", "not below high 0.001"]),
        (put("space", "lr", "high", value=1e-6), "space.lr", ["not below"]),
        (put("space", "lr", "low", value=0), "space.lr", ["log", "above zero"]),
        (put("space", "lr", "low", value=-1), "space.lr", ["log", "above zero"]),
        (put("space", "lr", "low", value="NaN"), "space.lr.low", ["finite"]),
        (put("space", "lr", "type", value="flaot"), "space.lr.type", ["did you mean 'float'"]),
        (remove("space", "lr", "high"), "space.lr.high", ["missing"]),
        (put("space", value={}), "space", ["at least 1"]),
        (
            put("space", "batch_size", value={"type": "categorical", "choices": [50, 100, 50]}),
            "space.batch_size.choices",
            ["50", "twice"],
        ),
        (
            put("space", "batch_size", value={"type": "float", "low": 1.5, "high": 9.0}),
            "space.batch_size",
            ["1.5", "does not fit", "integer"],
        ),
        (
            put("space", "optimizer.momentum", value={"type": "float", "low": 0.5, "high": 1.0}),
            "space.optimizer.momentum",
            ["1.0", "less than 1"],
        ),
        (
            put("space", "modle.hidden", value={"type": "int", "low": 1, "high": 9}),
            "space.modle.hidden",
            ["did you mean 'model.hidden'"],
        ),
        (
            put("space", "optimizer.lr", value={"type": "float", "low": 1.0, "high": 9.0}),
            "space.optimizer.lr",
            ["'lr'", "same parameter"],
        ),
        (put("metric", "name", value="val_acuracy"), "metric.name", ["never reports", "did you mean 'val_accuracy'"]),
        (put("metric", "direction", value="maximise"), "metric.direction", ["did you mean 'maximize'"]),
        (put("stages", value=[]), "stages", ["at least 1"]),
        (put("stages", 0, value={"name": "coarse"}), "stages.0", ["no budget"]),
        (put("stages", 0, "top", value=3), "stages.0", ["both trials and top"]),
        (put("stages", 0, "folds", value=1), "stages.0.folds", ["1", "greater than or equal to 2"]),
        (
            put("objective", "optimizer", value={"schedule": {"kind": "cosine", "warmup_epochs": 3}}),
            "stages.0.epochs",
            ["warmup_epochs 3", "longer than the 1 epochs"],
        ),
        (
            put("objective", "preprocess", value=[{"kind": "pca", "components": 3, "variance": 0.9}]),
            "objective.preprocess.0",
            ["components or variance"],
        ),
        (put("objective", "preprocess", value=["zero_maen"]), "objective.preprocess.0", ["did you mean 'zero_mean'"]),
        (put("objective", "model", "kind", value="cnm"), "objective.model.kind", ["did you mean 'cnn'"]),
        (put("objective", "loss", value={"kind": "mse"}), "metric.name", ["never reports", "val_mae"]),
        (put("stages", 0, value={"name": "first", "top": 3, "epochs": 1}), "stages.0.top", ["no parent"]),
        (remove("stages", 0, "epochs"), "stages.0.epochs", ["no budget of epochs"]),
        (put("stages", 0, "trials", value=0), "stages.0.trials", ["0", "greater than or equal to 1"]),
        (put("stages", 1, "name", value="coarse"), "stages.1.name", ["'coarse'"]),
        (put("name", value="a b/c"), "name", ["'a b/c'"]),
        (put("notes", value="a\0b"), "notes", ["NUL"]),
        (put("seed", value=-1), "seed", ["-1"]),
    ],
)
def test_a_wrong_place_is_named_with_value_and_rule(
    change: Callable[[dict[str, Any]], None], loc: str, words: list[str]
) -> None:
    document = copy.deepcopy(lecture())
    change(document)
    with pytest.raises(InvalidSpec) as caught:
        parse_study(document)
    texts = {fault.loc: fault.msg for fault in caught.value.faults}
    assert loc in texts, texts
    for word in words:
        assert word in str(caught.value)


def test_all_wrong_places_are_told_at_once() -> None:
    document = lecture()
    document["seed"] = "many"
    document["metric"] = {"name": 3, "direction": "up"}
    with pytest.raises(InvalidSpec) as caught:
        parse_study(document)
    assert {fault.loc for fault in caught.value.faults} == {"seed", "metric.name", "metric.direction"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [a", ["line 1", "not YAML"]),
        ("- a\n- b", ["mapping", "list"]),
        ("", ["mapping"]),
        ("name: a\nname: b", ["'name'", "twice", "line 2"]),
        ("a: !!python/object:os.system x", ["not YAML"]),
        (
            "x: &a [1,1,1,1,1,1,1,1,1,1]\ny: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
            "z: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "w: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\nv: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nu: [*e,*e,*e]",
            ["too large"],
        ),
        ("[" * 60 + "]" * 60, ["nested"]),
        ("x: &a [*a]", ["nested"]),
    ],
)
def test_what_is_no_study_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_study(parse_yaml(text))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.yaml cannot be read: No such file"):
        load_study(tmp_path / "absent.yaml")


def test_params_are_set_at_their_dotted_paths() -> None:
    objective = parse_study(lecture()).objective
    assert isinstance(objective, TrainObjective)
    changed = objective.with_params({"lr": 0.5, "reg": 2.0, "model.hidden": [10, 20], "batch_size": 7})
    assert changed.optimizer.lr == 0.5
    assert changed.regularization.l2 == 2.0
    assert changed.model == MlpModel(kind="mlp", hidden=[10, 20])
    assert changed.batch_size == 7
    assert objective.batch_size == 100
