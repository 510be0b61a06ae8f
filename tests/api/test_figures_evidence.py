"""Figures of what the search engine says, from hand-made trials; expected numbers are worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from hpsearch.analysis import StageAgreement
from hpsearch.errors import InvalidInput, NotFound
from hpsearch.search.agreement import Agreement
from hpsearch.search.borders import Flag, FlagVerdict
from hpsearch.search.confirming import finalists
from hpsearch.spec import StudySpec, parse_study
from hpsearch.study import Stage, StageState
from hpsearch.trial import StepMetrics, Trial, TrialState
from hpsearch_api.figures import FigureData, make_figure, shown_kinds
from hpsearch_api.figures.comparing import compare_figure
from hpsearch_api.figures.surrogate import surrogate

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPACE: dict[str, Any] = {
    "lr": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    "reg": {"type": "float", "low": 0.0, "high": 1.0},
    "act": {"type": "categorical", "choices": ["relu", "<b>tanh</b>"]},
}


def spec(**more: Any) -> StudySpec:
    document = {
        "name": "demo",
        "objective": {"kind": "external"},
        "metric": {"name": "score", "direction": "maximize"},
        "space": SPACE,
        "stages": [{"name": "coarse", "trials": 4, "epochs": 3}],
    }
    return parse_study(document | more)


def stage(study: StudySpec) -> Stage:
    return Stage(1, 1, 0, StageState.RUNNING, study.stages[0], study.space, 4, 4, None, None, {}, NOW, None)


def trial(number: int, value: float | None, state: str = "completed", **more: Any) -> Trial:
    params = more.pop("params", {"lr": 1e-2, "reg": 0.5, "act": "relu"})
    start = NOW + timedelta(seconds=number)
    made = Trial(number, "coarse", TrialState(state), params, value, 3, None, 1, f"w{number % 2}", NOW, start, start)
    return replace(made, **more)


def bowl(n: int = 60) -> list[Trial]:
    """The best lr is 1e-2, reg and act do nothing."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(n):
        lr, reg = float(10 ** rng.uniform(-4, 0)), float(rng.uniform(0, 1))
        act = ["relu", "<b>tanh</b>"][number % 2]
        value = 0.5 - 0.1 * (np.log10(lr) + 2) ** 2
        trials.append(trial(number, float(value), params={"lr": lr, "reg": reg, "act": act}))
    return trials


@pytest.fixture
def data() -> FigureData:
    study = spec()
    return FigureData(study, [stage(study)], bowl())


def test_the_surrogate_finds_the_bowl(data: FigureData) -> None:
    found = surrogate(data)
    assert found is not None
    assert (found.names, found.n, found.epochs) == (("lr", "reg"), 60, 3)
    middle, low, high = found.predict(found.along("lr", np.array([0.0, 0.5, 1.0])))
    # The bowl is 0.1 at either end and 0.5 in the middle; a cubic surface can be that to within its prior's pull.
    assert middle == pytest.approx([0.1, 0.5, 0.1], abs=0.02)
    assert (low < middle).all()
    assert (middle < high).all()
    assert found.values("lr", np.array([0.0, 0.25, 1.0])) == pytest.approx([1e-4, 1e-3, 1.0])


def test_too_few_trials_have_no_surrogate(data: FigureData) -> None:
    assert surrogate(replace(data, trials=data.trials[:11])) is None
    assert surrogate(replace(data, trials=[replace(t, value=0.5) for t in data.trials])) is None


def test_slices_and_contour_follow_the_surrogate(data: FigureData) -> None:
    figure = make_figure("slice", data)
    line = next(trace for trace in figure.data if trace.name == "others as in the best")
    assert line.x[int(np.argmax(line.y))] == pytest.approx(1e-2, rel=0.3)
    contour = next(trace for trace in make_figure("map", data).data if trace.name == "surrogate")
    assert np.array(contour.z).shape == (40, 40)
    assert make_figure("slice", replace(data, trials=[])).layout.annotations[0].text == "No trial has finished yet."


def test_what_matters_is_important_by_every_measure(data: FigureData) -> None:
    figure = make_figure("importance", data)
    assert [trace.name for trace in figure.data] == ["order of all trials", "PED-ANOVA, best tenth", "fANOVA"]
    for trace in figure.data:
        shares = dict(zip(trace.y, trace.x, strict=True))
        assert shares["lr"] > 0.8
        assert all(share is None or 0 <= share <= 1 for share in shares.values())


def test_a_parameter_that_some_trials_lack_is_left_out_of_the_models(data: FigureData) -> None:
    lacking = [
        replace(t, params={k: v for k, v in t.params.items() if k != "reg" or t.number % 3}) for t in data.trials
    ]
    figure = make_figure("importance", replace(data, trials=lacking))
    fanova = next(trace for trace in figure.data if trace.name == "fANOVA")
    assert dict(zip(fanova.y, fanova.x, strict=True))["reg"] is None
    for kind in ("axis", "map", "parallel", "slice", "history"):
        json.loads(make_figure(kind, replace(data, trials=lacking)).to_json(), parse_constant=pytest.fail)


def test_a_study_without_a_space_shows_what_its_trials_have() -> None:
    stages = [{"name": "all", "open_ended": True, "epochs": 1}]
    study = spec(space={}, stages=stages)
    trials = [trial(n, 0.1 * n, params={"x": 10.0**-n, "kind": "a" if n % 2 else "b"}) for n in range(6)]
    data = FigureData(study, [stage(study)], trials)
    assert (data.space["x"].type, data.space["kind"].type) == ("float", "categorical")
    figure = make_figure("axis", data)
    assert (figure.layout.xaxis.type, figure.layout.xaxis2.type) == ("log", "category")


def test_parallel_coordinates_draw_a_line_per_trial_and_say_what_the_axes_are(data: FigureData) -> None:
    figure = make_figure("parallel", data)
    axes = figure.layout.meta["axes"]
    assert [axis["key"] for axis in axes] == ["params.lr", "params.reg", "params.act", "value"]
    assert (axes[0]["low"], axes[0]["high"], axes[0]["log"]) == (-4.0, 0.0, True)
    rows = [row for trace in figure.data for row in trace.customdata]
    assert len(rows) == 60 * (4 + 1)  # each line ends with a gap
    best = next(t for t in data.best())
    at = [y for trace in figure.data for y, row in zip(trace.y, trace.customdata, strict=True) if row[0] == best.number]
    assert at[0] == pytest.approx((np.log10(float(best.params["lr"])) + 4) / 4)  # type: ignore[arg-type]
    assert at[3] == pytest.approx(1.0)
    assert "<b>tanh" not in figure.to_json()


def test_finalists_have_intervals_and_seeds() -> None:
    study = spec(stages=[{"name": "coarse", "trials": 4, "epochs": 3}, {"name": "confirm", "top": 2, "epochs": 3}])
    one, other = {"lr": 1e-2, "reg": 0.5, "act": "relu"}, {"lr": 1e-3, "reg": 0.1, "act": "relu"}
    values = [(one, 0.8), (one, 0.9), (other, 0.5), (other, 0.6)]
    trials = [trial(n, value, params=params) for n, (params, value) in enumerate(values)]
    found = finalists(trials, study.metric, parent=[trial(9, 0.95, params=one)])
    figure = make_figure("finalists", FigureData(study, [stage(study)], trials, finalists=found))
    seeds, chosen, means = figure.data
    assert sorted(seeds.x) == [0.5, 0.6, 0.8, 0.9]
    assert list(chosen.x) == [0.95]
    assert list(means.x) == pytest.approx([0.85, 0.55])
    # t(0.95, 2) = 2.9200, standard error 0.0707 / √2 = 0.05: a reach of 0.1460.
    assert list(means.error_x.array) == pytest.approx([0.1460, 0.1460], abs=1e-4)
    assert means.y[0].startswith("1. lr 0.01, reg 0.5, act relu")


def test_agreement_is_drawn_by_epochs_with_its_interval() -> None:
    seen = [
        StageAgreement("coarse", "coarse", Agreement(1, 4, 30, 0.4, (0.1, 0.6), 6, 0.5, "too short")),
        StageAgreement("coarse", "coarse", Agreement(2, 4, 30, 0.9, (0.8, 0.95), 6, 0.8, None)),
        StageAgreement("coarse", "confirm", Agreement(4, 8, 2, None, None, 1, None, None)),
    ]
    study = spec()
    figure = make_figure("agreement", FigureData(study, [stage(study)], bowl(), agreements=seen))
    assert len(figure.data) == 1
    assert (list(figure.data[0].x), list(figure.data[0].y)) == ([1, 2], [0.4, 0.9])
    assert list(figure.data[0].error_y.array) == pytest.approx([0.2, 0.05])
    assert list(figure.data[0].error_y.arrayminus) == pytest.approx([0.3, 0.1])


def test_a_flag_stands_at_its_border(data: FigureData) -> None:
    flag = Flag("coarse", "lr", "high", "strong", 0.0012, FlagVerdict.WIDEN, "<i>why</i>", None, 0.99)
    figure = make_figure("axis", replace(data, flags=[flag, replace(flag, p_value=0.04)]))
    flags = [text for text in figure.layout.annotations if "p = " in text.text]
    assert [(text.text, text.x, text.xref, text.xanchor) for text in flags] == [("⚑ p = 0.0012", 0.0, "x", "right")]
    assert flags[0].hovertext == "&lt;i&gt;why&lt;/i&gt;"


def test_compute_adds_up_epochs_by_what_became_of_them() -> None:
    study = spec()
    trials = [trial(0, 0.5), trial(1, None, "diverged", step=1), trial(2, 0.6), trial(3, None, "running")]
    trials[3] = replace(trials[3], ended_at=None)
    figure = make_figure("compute", FigureData(study, [stage(study)], trials))
    drawn = {trace.name: list(trace.y) for trace in figure.data}
    assert drawn == {"completed": [3, 3, 6], "diverged": [0, 1, 1]}
    assert figure.layout.title.subtitle.text == "7 epochs: 6 completed (86%), 1 diverged (14%)"
    sampled = make_figure("compute", FigureData(study, [stage(study)], trials, n_trials=40))
    assert sampled.layout.title.subtitle.text.startswith("about 70 epochs")


def test_the_timeline_has_a_row_for_each_worker(data: FigureData) -> None:
    figure = make_figure("timeline", data)
    assert list(figure.layout.yaxis.ticktext) == ["w0", "w1"]
    assert len(figure.data[0].x) == 3 * 60


def test_layers_are_of_the_best_trial_or_the_one_asked_for(data: FigureData) -> None:
    def metrics(numbers: Sequence[int]) -> list[StepMetrics]:
        values = {"diag/dead/0": 0.25, "diag/update_ratio/0": 1e-3, "diag/update_ratio/1": 2e-3}
        return [StepMetrics(n, step, values) for n in numbers for step in (1, 2)]

    figure = make_figure("layers", replace(data, metrics=metrics), {"trial": "7"})
    assert [(trace.name, list(trace.y)) for trace in figure.data] == [
        ("0", [0.25, 0.25]),
        ("0", [1e-3, 1e-3]),
        ("1", [2e-3, 2e-3]),
    ]
    assert "trial 7" in figure.layout.title.subtitle.text
    best = make_figure("layers", replace(data, metrics=metrics))
    assert f"trial {data.best()[0].number};" in best.layout.title.subtitle.text
    with pytest.raises(NotFound):
        make_figure("layers", data, {"trial": "4711"})


def test_histograms_of_the_activations_at_the_start(data: FigureData) -> None:
    def metrics(numbers: Sequence[int]) -> list[StepMetrics]:
        wide = {"low": -2.0, "high": 2.0, "dead": 0.25, "00": 0.5, "01": 0.5}
        narrow = {"low": 0.0, "high": 0.01, "dead": 0.0, "00": 1.0, "01": 0.0}
        values = {f"diag/start/layers.{i}/{key}": x for i, row in ((9, wide), (10, narrow)) for key, x in row.items()}
        half = {"diag/start/lost/low": 0.0, "score": 0.5}
        return [StepMetrics(n, 1, values | half) for n in numbers]

    figure = make_figure("activations", replace(data, metrics=metrics), {"trial": "7"})
    first, second = figure.data
    assert [(trace.name, list(trace.y)) for trace in figure.data] == [
        ("layers.9", [0.5, 0.5]),
        ("layers.10", [1.0, 0.0]),
    ]
    assert (list(first.x), first.width) == ([-1.0, 1.0], 2.0)
    assert (list(second.x), second.width) == ([0.0025, 0.0075], 0.005)
    # Half at -1 and half at 1: the deviation from their mean 0 is 1.
    assert figure.layout.annotations[0].text == "layers.9: spread 1, 25% dead"
    assert figure.layout.xaxis.matches is None, "widths of 4 and 0.01 are too far apart for one axis"
    assert "on a scale of its own" in figure.layout.title.subtitle.text
    assert make_figure("activations", data).layout.annotations[0].text.startswith("No histogram was taken")
    curves = make_figure("curves", replace(data, metrics=metrics))
    assert not [name for name in curves.layout.meta["metrics"] if "start" in name]


def test_curves_are_coloured_by_verdict_and_mark_it_at_its_epoch() -> None:
    study = spec()
    verdict = {"name": "overfitting", "epoch": 2, "evidence": {}, "advice": ""}
    trials = [trial(0, 0.5, verdicts=(verdict,)), trial(1, 0.4)]

    def metrics(numbers: Sequence[int]) -> list[StepMetrics]:
        return [StepMetrics(n, step, {"score": 0.1 * step}) for n in numbers for step in (1, 2, 3)]

    data = FigureData(study, [stage(study)], trials, metrics)
    figure = make_figure("curves", data, {"by": "verdict"})
    assert {trace.name: trace.line.color for trace in figure.data} == {
        "overfitting": "#CC79A7",
        "no verdict": "#808a96",
    }
    own = make_figure("curves", data, {"trial": "0"})
    assert [(shape.x0, shape.x1) for shape in own.layout.shapes] == [(2, 2)]
    assert own.layout.annotations[0].text == "overfitting"
    with pytest.raises(InvalidInput, match="unknown colour 'rainbow'"):
        make_figure("curves", data, {"by": "rainbow"})


def test_studies_are_compared_by_the_epochs_they_took() -> None:
    study = spec()
    first = FigureData(study, [stage(study)], [trial(0, 0.2), trial(1, None, "diverged", step=1), trial(2, 0.4)])
    lost = [trial(n, None, "diverged", step=1) for n in (0, 1)]
    second = FigureData(spec(name="other"), [stage(study)], [*lost, trial(2, 0.3), trial(3, 0.1)])
    empty = FigureData(spec(name="none"), [stage(study)], [])
    figure = compare_figure([first, second, empty])
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in figure.data] == [
        ("demo", [3, 7, 7], [0.2, 0.4, 0.4]),
        ("other", [5, 8], [0.3, 0.3]),
    ]


def test_a_sample_is_said_to_be_one(data: FigureData) -> None:
    note = make_figure("axis", replace(data, n_trials=600)).layout.title.subtitle.text
    assert note == "60 of 600 trials drawn, evenly spread, the best among them"


def test_kinds_are_shown_where_they_may_have_something_to_say() -> None:
    assert not {"rungs", "finalists", "layers", "activations"} & set(shown_kinds(spec()))
    confirmed = spec(stages=[{"name": "coarse", "trials": 4, "epochs": 3}, {"name": "confirm", "top": 2, "epochs": 3}])
    assert "finalists" in shown_kinds(confirmed)
