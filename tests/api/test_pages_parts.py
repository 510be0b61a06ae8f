"""What the pages say, without a browser: the headline, the table's address, lines of a text, neighbours, memory."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hpsearch.document import parse_yaml
from hpsearch.errors import InvalidInput
from hpsearch.space import CategoricalParam, FloatParam, Space
from hpsearch.spec import parse_study
from hpsearch.study import Study, StudyState
from hpsearch.trial import Trial, TrialState
from hpsearch_api.memory import Memory
from hpsearch_api.pages.formats import change, editable, stop_text, widest
from hpsearch_api.pages.headline import headline
from hpsearch_api.pages.neighbours import neighbours
from hpsearch_api.pages.overview import flattened
from hpsearch_api.pages.starting import clone, examples
from hpsearch_api.pages.table import choices_text, read_table
from hpsearch_api.validation import validate

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LR = {"type": "float", "low": 1e-6, "high": 1e-3, "log": True}


def stage(name: str, high: float = 1e-3, **more: Any) -> dict[str, Any]:
    space = {"lr": {**LR, "high": high}}
    return {"name": name, "index": 0, "parent": None, "extension": 0, "space": space, "spec": {}, **more}


def study(**more: Any) -> dict[str, Any]:
    best = {"n": None, "probability_best": None}
    return {"state": "running", "best": best, "counts": {}, "stages": [stage("coarse")], **more}


def flag(**more: Any) -> dict[str, Any]:
    given = {"stage": "coarse", "parameter": "lr", "side": "high", "level": "strong", "p_value": 0.00123}
    rest = {"verdict": "widen", "proposed": {"low": 1e-5, "high": 1e-2}, "acknowledged": None}
    return given | rest | more


def test_the_headline_states_border_p_value_and_advice() -> None:
    said = headline(study(), [flag()])
    assert said.conclusion == "lr lies at the upper border of its range, p = 0.0012."
    assert (said.advice, said.tone) == ("Widen lr to 0.01.", "act")
    said = headline(study(), [flag(verdict="unstable_edge", side="low", proposed=None)])
    assert said.conclusion == "lr lies at the lower end of what trains, before a cliff of diverged trials, p = 0.0012."
    assert "rather than widen" in said.advice


@pytest.mark.parametrize(
    "flags",
    [
        [flag(level="watch")],
        [flag(acknowledged={"note": "", "at": ""})],
        [flag(verdict="natural_limit")],
        [flag(verdict="insufficient_data")],
        [],
    ],
)
def test_the_headline_asks_for_nothing_where_nothing_is_to_be_done(flags: list[dict[str, Any]]) -> None:
    assert headline(study(), flags).advice == ""


def test_a_border_that_a_later_stage_left_or_went_past_is_no_news() -> None:
    inside = stage("fine", high=1e-4, index=1)
    assert headline(study(stages=[stage("coarse"), inside]), [flag()]).advice == ""
    there_still = stage("fine", index=1)
    assert headline(study(stages=[stage("coarse"), there_still]), [flag()]).advice == "Widen lr to 0.01."
    wider = stage("coarse-wider", high=1e-2, index=1, parent="coarse", extension=1)
    assert headline(study(stages=[stage("coarse"), wider]), [flag()]).advice == ""


def test_the_headline_of_what_is_known_so_far() -> None:
    assert headline(study(best=None), []).conclusion == "No trial has completed yet."
    diverged = study(best=None, counts={"diverged": 12, "completed": 0})
    assert headline(diverged, []).conclusion == "No trial has completed yet: 12 diverged."
    assert headline(study(), None).conclusion == ""
    ended = study(state="completed")
    assert headline(ended, []).conclusion == "inside its ranges, no border is flagged."
    sure = study(state="completed", best={"n": 3, "probability_best": 0.931})
    text = "mean of 3 fresh seeds; no other finalist is better with probability 0.93."
    assert headline(sure, []).conclusion == f"{text} Inside its ranges, no border is flagged."


def test_formats() -> None:
    assert change({"high": [1e-3, 1e-2], "choices": [1, 2]}) == "high 1e-3 → 0.01, choices changed"
    assert editable(1e-3) == "1e-3"
    assert float(editable(0.1 + 0.2)) == 0.1 + 0.2
    never = dict.fromkeys(("target", "seconds", "epochs", "no_improvement"))
    metric = {"name": "loss", "direction": "minimize"}
    assert stop_text(never, metric) == "with its last stage"
    assert stop_text({**never, "target": 0.5, "epochs": 100}, metric) == "once loss ≤ 0.5, or 100 epochs are trained"
    assert widest({"lr": LR}, [stage("a", 1e-2)])["lr"]["high"] == 1e-2


def parsed(text: str) -> Any:
    return parse_study(parse_yaml(text))


TEXT = """name: a
objective: {kind: external}
metric: {name: score, direction: maximize}
space:
  lr:
    type: float
    low: 1.0e-6
    high: 1.0e-3
    log: true
  a.b: {type: int, low: 1, high: 5}
stages:
  - {name: coarse, trials: 10, epochs: 3}
  - {name: confirm, top: 2, seeds: 4, epochs: 5}
"""


@pytest.mark.parametrize(
    ("change", "line", "msg"),
    [
        (("high: 1.0e-3", "high: 1.0e-9"), 5, "lr"),
        (("low: 1.0e-6", "low: often"), 7, "number"),
        (("high: 5}", "high: 5, widht: 3}"), 10, "widht"),
        (("top: 2", "trails: 2"), 13, "trails"),
        (("metric: ", "metrik: "), 3, "metrik"),
        (("log: true", "log: true\n    log: false"), 10, "stands twice"),
        (("name: a", "name: [a"), 2, "YAML"),
    ],
)
def test_a_fault_has_its_line(change: tuple[str, str], line: int, msg: str) -> None:
    found = validate(TEXT.replace(*change, 1))
    assert not found.valid
    assert [fault.line for fault in found.errors if msg in fault.msg or msg in fault.loc][:1] == [line], found.errors


def test_a_valid_text_has_its_cost() -> None:
    found = validate(TEXT)
    assert (found.valid, found.errors, found.name, found.n_epochs) == (True, [], "a", 10 * 3 + 8 * 5)
    assert [(s.name, s.n_trials, s.n_epochs) for s in found.stages] == [("coarse", 10, 30), ("confirm", 8, 40)]
    assert found.space is not None
    assert found.space["lr"]["high"] == 1e-3
    assert not validate("").valid


def test_folds_and_seeds_cost() -> None:
    found = validate(TEXT.replace("epochs: 3}", "epochs: 3, folds: 5}"))
    assert found.n_epochs == 10 * 3 * 5 + 40


def test_examples_and_clones_are_studies() -> None:
    assert len(examples()) == len(list((Path(__file__).parents[2] / "examples").glob("*.yaml")))
    for example in examples():
        spec = parsed(example["text"])
        copy = parsed(clone(Study(1, spec, StudyState.RUNNING, None, 0, NOW, None)))
        assert copy == spec.model_copy(update={"name": f"{spec.name}-2"})


def test_the_table_reads_and_writes_ranges() -> None:
    spec = parsed(TEXT)
    table = read_table(spec, {"range_of": "value", "range_low": "0.5"}, ["params.lr:1e-5:0.001", "params.a.b:1:3"])
    assert table.within == (("params.lr", 1e-5, 1e-3), ("params.a.b", 1.0, 3.0), ("value", 0.5, 1e308))
    again = read_table(spec, {}, ["params.lr:1e-05:0.001"])
    assert again.without("params.lr") == "?sort=-value&limit=25"
    assert "within=params.lr%3A1e-05%3A0.001" in again.address()
    for wrong in ("lr", "params.lr:a:b", "params.lr:nan:1"):
        with pytest.raises(InvalidInput, match="is no range"):
            read_table(spec, {}, [wrong])


def test_the_table_reads_and_writes_choices() -> None:
    space = "  a.b: {type: categorical, choices: [relu, 'x:[y', 3, true, [50, 20]]}"
    spec = parsed(TEXT.replace("  a.b: {type: int, low: 1, high: 5}", space))
    table = read_table(spec, {}, [], ['params.a.b:["x:[y",3,true,[50,20]]'])
    assert table.among == (("params.a.b", ("x:[y", 3, True, [50, 20])),)
    assert table.query().among == table.among
    assert choices_text(table.among[0]) == 'params.a.b:["x:[y",3,true,[50,20]]'
    assert table.without("params.a.b") == "?sort=-value&limit=25"
    assert table.matching([{"name": "coarse", "counts": {"completed": 3}}]) is None
    for wrong in ("params.a.b", 'params.a.b:["relu"', 'params.a.b:[{"a":1}]'):
        with pytest.raises(InvalidInput, match="has no choices"):
            read_table(spec, {}, [], [wrong])
    with pytest.raises(InvalidInput, match="too many"):
        read_table(spec, {}, [], ["params.a.b:[]"] * 21)


def trial(number: int, **params: Any) -> Trial:
    return Trial(number, "coarse", TrialState.COMPLETED, params, 0.5, 1, None, 1, "w", NOW, NOW, NOW)


def test_neighbours_are_the_nearest_on_the_scales_of_the_ranges() -> None:
    space: Space = {
        "lr": FloatParam(type="float", low=1e-6, high=1e-2, log=True),
        "act": CategoricalParam(type="categorical", choices=["relu", "tanh"]),
    }
    here = trial(0, lr=1e-4, act="relu")
    others = [
        here,
        trial(1, lr=1e-4, act="tanh"),  # another choice: 100 % of one of two parameters
        trial(2, lr=1e-3, act="relu"),  # a decade of four: 25 % of one of two
        trial(3, lr=1e-4, act="relu"),  # the same params
        trial(4, act="relu"),  # lacks lr
    ]
    assert [(n.trial.number, round(n.percent, 6)) for n in neighbours(space, here, others)] == [(2, 12.5), (1, 50.0)]


def test_documents_are_compared_by_dotted_paths() -> None:
    document = {"a": {"b": [1, 2], "c": {}}, "stages": [{"name": "x"}]}
    assert flattened(document) == {"a.b": [1, 2], "a.c": {}, "stages.0.name": "x"}


def test_memory_keeps_a_version_and_waits_where_it_may() -> None:
    now = [0.0]
    memory = Memory(lambda: now[0], lambda: now[0])
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        now[0] += 1.0
        return made[-1]

    assert memory.get("a", 1, make) == 0
    assert memory.get("a", 1, make) == 0
    assert memory.get("a", 2, make, patient=True) == 0, "it took a second, a moment ago"
    assert memory.get("a", 2, make) == 1
    now[0] += 30.0
    assert memory.get("a", 3, make, patient=True) == 2, "more than 20 times as long ago"
    assert memory.has("a")
    assert not memory.has("b")
