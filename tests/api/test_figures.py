"""Figures from hand-made trials; every expected number is worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from hpsearch.errors import InvalidInput, NotFound
from hpsearch.spec import StudySpec, parse_study
from hpsearch.study import Stage, StageState
from hpsearch.trial import StepMetrics, Trial, TrialState
from hpsearch_api.figures import KINDS, FigureData, make_figure

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LR = {"type": "float", "low": 1e-6, "high": 1e-2, "log": True}
REG = {"type": "float", "low": 1e-5, "high": 1e5, "log": True}


def spec(
    space: dict[str, Any] | None = None,
    *,
    direction: str = "maximize",
    kind: str = "external",
    early_stopping: str = "none",
) -> StudySpec:
    objective: dict[str, Any] = {"kind": kind}
    if kind == "train":
        objective |= {"data": {"source": "digits"}, "model": {"kind": "mlp"}}
    return parse_study(
        {
            "name": "demo",
            "objective": objective,
            "metric": {"name": "val_accuracy", "direction": direction},
            "space": space or {"lr": LR, "reg": REG},
            "stages": [
                {"name": "coarse", "trials": 4, "epochs": 3, "early_stopping": early_stopping},
                {"name": "fine", "trials": 4, "epochs": 3},
            ],
        }
    )


def stages(study: StudySpec, lr: tuple[float, float] = (1e-4, 1e-3)) -> list[Stage]:
    narrowed = dict(study.space)
    if "lr" in narrowed:
        narrowed["lr"] = narrowed["lr"].model_copy(update={"low": lr[0], "high": lr[1]})
    made = []
    for index, space in enumerate((study.space, narrowed)):
        made.append(
            Stage(
                id=index + 1,
                study_id=1,
                index=index,
                state=StageState.RUNNING,
                spec=study.stages[index],
                space=space,
                n_trials=4,
                n_created=4,
                parent="coarse" if index else None,
                difference=None,
                counts={},
                opened_at=NOW,
                ended_at=None,
            )
        )
    return made


def trial(number: int, value: float | None, state: str = "completed", *, stage: str = "coarse", **params: Any) -> Trial:
    return Trial(
        number=number,
        stage=stage,
        state=TrialState(state),
        params=params or {"lr": 1e-3, "reg": 1.0},
        value=value,
        step=3,
        reason="loss 9.1e3 at step 3" if state == "diverged" else None,
        n_attempts=1,
        worker="w",
        created_at=NOW,
        started_at=NOW,
        ended_at=NOW,
    )


def metrics(numbers: Sequence[int]) -> list[StepMetrics]:
    return [
        StepMetrics(n, step, {"val_accuracy": 0.1 * step, "val_loss": 1 / step}) for n in numbers for step in (1, 2)
    ]


@pytest.fixture
def data() -> FigureData:
    study = spec()
    trials = [
        trial(0, 0.30, lr=1e-5, reg=1.0),
        trial(1, 0.50, lr=1e-4, reg=10.0),
        trial(2, None, "diverged", lr=1e-2, reg=1e4),
        trial(3, 0.20, lr=1e-6, reg=0.1),
        trial(4, 0.55, stage="fine", lr=3e-4, reg=2.0),
        trial(5, None, "running", stage="fine", lr=2e-4, reg=3.0),
        trial(6, 0.90, "pruned", stage="fine", lr=9e-4, reg=5.0),
        trial(7, None, "queued", stage="fine", lr=9e-4, reg=6.0),
    ]
    return FigureData(study, stages(study), trials, metrics)


def traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def test_kinds_have_titles_in_the_order_of_the_page() -> None:
    assert list(KINDS) == [
        "axis", "map", "parallel", "importance", "slice", "history", "curves", "layers", "activations",
        "rungs", "finalists", "agreement", "timeline", "compute",
    ]  # fmt: skip
    assert all(kind.title for kind in KINDS.values())


def test_axis_draws_few_points_where_few_are_asked_for(data: FigureData) -> None:
    many = replace(data, trials=[trial(n, n / 1000, lr=1e-4, reg=1.0) for n in range(400)])
    few = make_figure("axis", many, {"points": "200"})
    assert [len(trace.x) for trace in traces(few, "coarse")] == [99, 99]  # at most; the best is the last, too
    assert list(traces(few, "best three")[0].customdata[:, 0]) == [399, 398, 397]
    assert few.layout.meta["more"] is True
    whole = make_figure("axis", many)
    assert [len(trace.x) for trace in traces(whole, "coarse")] == [400, 400]
    assert whole.layout.meta["more"] is False
    with pytest.raises(InvalidInput, match="points '99' is not a whole number from 100 to 20000"):
        make_figure("axis", many, {"points": "99"})


def test_axis_has_a_subplot_per_parameter_on_its_own_scale(data: FigureData) -> None:
    figure = make_figure("axis", data)
    assert figure.layout.xaxis.type == "log"
    # 1e-6 to 1e-2 is 4 decades; 5 % of them is 0.2 on either side.
    assert figure.layout.xaxis.range == pytest.approx((-6.2, -1.8))
    assert figure.layout.xaxis2.title.text == "reg (log scale)"
    assert figure.layout.yaxis.title.text == "val_accuracy (higher is better)"
    coarse = traces(figure, "coarse")
    assert [list(t.y) for t in coarse] == [[0.30, 0.50, 0.20]] * 2
    assert list(coarse[0].x) == [1e-5, 1e-4, 1e-6]
    assert list(coarse[1].x) == [1.0, 10.0, 0.1]
    assert [t.showlegend for t in coarse] == [True, False]


def test_axis_draws_range_ends_and_bands_of_narrower_stages(data: FigureData) -> None:
    shapes = make_figure("axis", data).layout.shapes
    lines = [(s.xref, s.x0) for s in shapes if s.type == "line"]
    assert lines == [("x", 1e-6), ("x", 1e-2), ("x2", 1e-5), ("x2", 1e5)]
    assert [(s.xref, s.x0, s.x1) for s in shapes if s.type == "rect"] == [("x", 1e-4, 1e-3)]


def test_axis_stars_the_best_three_completed_and_puts_diverged_below(data: FigureData) -> None:
    figure = make_figure("axis", data)
    stars, crosses = traces(figure, "best three")[0], traces(figure, "diverged")[0]
    # The pruned trial's 0.90 was reached in fewer steps and is no star.
    assert [int(row[0]) for row in stars.customdata] == [4, 1, 0]
    assert stars.marker.symbol == "star"
    assert list(crosses.x) == [1e-2]
    # Values run from 0.20 to 0.90: 7 % of 0.70 below is 0.151.
    assert list(crosses.y) == pytest.approx([0.151])
    assert crosses.marker.color == "#DC3220"
    assert list(crosses.text) == ["loss 9.1e3 at step 3"]


def test_a_metric_to_be_minimised_has_its_diverged_trials_at_the_top_on_a_log_axis() -> None:
    study = spec(direction="minimize")
    trials = [trial(0, 1.0), trial(1, 100.0), trial(2, None, "diverged")]
    figure = make_figure("axis", FigureData(study, stages(study), trials))
    assert figure.layout.yaxis.type == "log"
    # log10 runs from 0 to 2: 7 % above is 2.14.
    assert list(traces(figure, "diverged")[0].y) == pytest.approx([10**2.14])


def test_customdata_is_number_step_value_and_params(data: FigureData) -> None:
    fine = traces(make_figure("axis", data), "fine")[0]
    assert fine.customdata.tolist() == [[4, 3, 0.55, 3e-4, 2.0], [6, 3, 0.90, 9e-4, 5.0]]
    assert "trial %{customdata[0]}" in fine.hovertemplate
    assert "lr %{customdata[3]" in fine.hovertemplate


def test_axis_takes_parameters_and_columns(data: FigureData) -> None:
    figure = make_figure("axis", data, {"params": "reg", "columns": "1"})
    assert figure.layout.xaxis.title.text == "reg (log scale)"
    assert not any(key.startswith("xaxis2") for key in figure.layout.to_plotly_json())


def test_map_colours_by_the_metric_and_boxes_the_stages(data: FigureData) -> None:
    figure = make_figure("map", data)
    points = traces(figure, "coarse")[0]
    assert list(points.x) == [1e-5, 1e-4, 1e-6]
    assert list(points.y) == [1.0, 10.0, 0.1]
    assert list(points.marker.color) == [0.30, 0.50, 0.20]
    assert points.marker.coloraxis == "coloraxis"
    assert figure.layout.coloraxis.reversescale is False
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert [(s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes] == [
        (1e-6, 1e-2, 1e-5, 1e5),
        (1e-4, 1e-3, 1e-5, 1e5),
    ]
    assert list(traces(figure, "diverged")[0].y) == [1e4]
    assert list(traces(figure, "running")[0].x) == [2e-4]


def test_map_takes_other_parameters(data: FigureData) -> None:
    figure = make_figure("map", data, {"x": "reg"})
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("reg (log scale)", "lr (log scale)")


def test_map_of_one_parameter_says_so() -> None:
    study = spec({"lr": LR})
    figure = make_figure("map", FigureData(study, stages(study), [trial(0, 0.5, lr=1e-3)]))
    assert figure.layout.annotations[0].text == "A map needs two parameters; this study has one."


def test_curves_draw_the_metric_per_step_best_on_top(data: FigureData) -> None:
    figure = make_figure("curves", data)
    assert [trace.customdata[0][0] for trace in figure.data if trace.name != "diverged"] == [6, 3, 0, 1, 4, 2, 5]
    assert list(figure.data[0].x) == [1, 2]
    assert list(figure.data[0].y) == pytest.approx([0.1, 0.2])
    widths = {trace.customdata[0][0]: trace.line.width for trace in figure.data if trace.mode != "markers"}
    assert [n for n, width in widths.items() if width == 3] == [0, 1, 4]
    assert figure.layout.meta["metrics"] == ["val_accuracy", "val_loss"]
    assert figure.layout.xaxis.title.text == "step"


def test_curves_of_another_metric(data: FigureData) -> None:
    figure = make_figure("curves", data, {"metric": "val_loss"})
    assert list(figure.data[0].y) == [1, 0.5]
    assert figure.layout.yaxis.title.text == "val_loss"


def test_curves_of_a_training_study_know_its_metrics_before_the_first_report() -> None:
    study = spec({"lr": LR}, kind="train")
    figure = make_figure("curves", FigureData(study, stages(study), []), {"metric": "train_loss"})
    assert figure.layout.xaxis.title.text == "epoch"
    assert figure.layout.meta["metrics"] == [
        "val_accuracy",
        "train_loss",
        "val_loss",
        "train_accuracy",
        "val_top5_accuracy",
        "val_macro_f1",
    ]


def test_curves_keep_to_the_running_and_the_best_and_say_so() -> None:
    study = spec()
    trials = [trial(n, n / 1000) for n in range(500)] + [trial(n, None, "running") for n in range(500, 504)]
    asked: list[int] = []

    def read(numbers: Sequence[int]) -> list[StepMetrics]:
        asked.extend(numbers)
        return metrics(numbers)

    figure = make_figure("curves", FigureData(study, stages(study), trials, read))
    assert sorted(asked) == list(range(304, 504))
    assert figure.layout.title.subtitle.text == "the best 196 and 4 running of 504 trials"


def test_a_diverged_curve_ends_in_a_cross_where_it_was_last_finite() -> None:
    study = spec()
    steps = [StepMetrics(0, 1, {"val_accuracy": 0.25}), StepMetrics(0, 2, {"val_accuracy": math.nan})]
    figure = make_figure("curves", FigureData(study, stages(study), [trial(0, None, "diverged")], lambda _: steps))
    assert list(figure.data[0].y) == [0.25, None]
    assert (list(figure.data[1].x), list(figure.data[1].y)) == ([1], [0.25])
    json.loads(figure.to_json(), parse_constant=pytest.fail)  # no NaN, which JSON lacks


def test_curves_of_one_trial_group_metrics_by_what_they_measure(data: FigureData) -> None:
    figure = make_figure("curves", data, {"trial": "4"})
    assert [trace.name for trace in figure.data] == ["val_accuracy", "val_loss"]
    assert (figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text) == ("accuracy", "loss")


def test_history_rises_with_each_best(data: FigureData) -> None:
    figure = make_figure("history", data)
    assert list(traces(figure, "coarse")[0].x) == [0, 1, 3]
    best = traces(figure, "best so far")[0]
    # The line is drawn on to the last trial, number 7; the pruned 0.90 does not count.
    assert list(best.x) == [0, 1, 4, 7]
    assert list(best.y) == [0.30, 0.50, 0.55, 0.55]
    assert best.line.shape == "hv"


def test_history_falls_when_lower_is_better() -> None:
    study = spec(direction="minimize")
    trials = [trial(n, value) for n, value in enumerate([3.0, 4.0, 2.0, 2.0])]
    best = traces(make_figure("history", FigureData(study, stages(study), trials)), "best so far")[0]
    assert (list(best.x), list(best.y)) == ([0, 2, 3], [3.0, 2.0, 2.0])


def test_rungs_show_what_was_stopped_and_saved() -> None:
    study = spec(early_stopping="asha")
    ends = [1, 1, 2, 3]
    trials = [replace(trial(n, 0.1, "completed" if end == 3 else "pruned"), step=end) for n, end in enumerate(ends)]
    trials.append(replace(trial(4, 0.1, "pruned", stage="fine"), step=1))
    figure = make_figure("rungs", FigureData(study, stages(study), trials))
    went_on, stopped = figure.data
    assert list(stopped.x) == ["coarse · step 1", "coarse · step 2"]  # 2: its worker ended it on its own
    assert (list(went_on.y), list(stopped.y), list(stopped.customdata)) == ([2, 1], [2, 1], [4, 1])
    assert "5 of 12 steps saved" in figure.layout.title.subtitle.text
    assert figure.layout.barmode == "stack"


def test_rungs_of_a_study_that_stops_nothing_say_so(data: FigureData) -> None:
    figure = make_figure("rungs", data)
    assert len(figure.data) == 0
    assert figure.layout.title.subtitle.text == "No stage stops trials early."


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_empty_study_has_a_figure_with_a_note(kind: str) -> None:
    study = spec()
    figure = make_figure(kind, FigureData(study, [], []))
    assert len(figure.data) == 0
    notes = {
        "curves": "Nothing has been reported yet.",
        "layers": "No layer was measured: diagnostics come from nets that a worker of this service trains.",
        "activations": "No histogram was taken: nets that a worker of this service trains have some, if they train for "
        "60 steps.",
        "timeline": "No worker has trained a trial yet.",
        "compute": "No trial has ended yet.",
    }
    assert figure.layout.annotations[0].text == notes.get(kind, "No trial has finished yet.")


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_study_in_which_all_diverged(kind: str) -> None:
    study = spec()
    trials = [trial(n, None, "diverged", lr=1e-3, reg=1.0) for n in range(5)]
    figure = make_figure(kind, FigureData(study, stages(study), trials))
    if kind in ("axis", "map", "history"):
        assert len(traces(figure, "diverged")[0].customdata) == 5
        assert figure.layout.title.subtitle.text == "No trial has a value: those that finished diverged or failed."


def test_strings_booleans_and_lists_have_categorical_axes_and_are_never_markup() -> None:
    space = {
        "activation": {"type": "categorical", "choices": ["relu", "<b>tanh</b>", "%{x}"]},
        "norm": {"type": "categorical", "choices": [True, False]},
        "hidden": {"type": "categorical", "choices": [[50], [100, 50]]},
    }
    study = spec(space)
    trials = [
        trial(0, 0.1, activation="relu", norm=True, hidden=[50]),
        trial(1, 0.2, activation="<b>tanh</b>", norm=False, hidden=[100, 50]),
    ]
    data = FigureData(study, stages(study), trials, metrics)
    figure = make_figure("axis", data)
    first, second, third = figure.layout.xaxis, figure.layout.xaxis2, figure.layout.xaxis3
    assert {axis.type for axis in (first, second, third)} == {"category"}
    assert first.categoryarray == ("relu", "&lt;b&gt;tanh&lt;/b&gt;", "%&#123;x}")
    assert second.categoryarray == ("true", "false")
    assert third.categoryarray == ("[50]", "[100, 50]")
    points = traces(figure, "coarse")
    assert list(points[0].x) == ["relu", "&lt;b&gt;tanh&lt;/b&gt;"]
    assert list(points[1].x) == ["true", "false"]
    # meta, which a page filters by, is not drawn
    drawn = "".join(make_figure(kind, data).update_layout(meta=None).to_json() for kind in KINDS)
    assert "<b>tanh" not in drawn
    assert r"\u003cb\u003etanh" not in drawn


def test_ten_thousand_trials_are_columns_drawn_with_webgl() -> None:
    study = spec()
    rng = np.random.default_rng(0)
    lr, reg, value = 10 ** rng.uniform(-6, -2, 10_000), 10 ** rng.uniform(-5, 5, 10_000), rng.uniform(0, 1, 10_000)
    trials = [trial(n, float(value[n]), lr=float(lr[n]), reg=float(reg[n])) for n in range(10_000)]
    data = FigureData(study, stages(study), trials, metrics)
    for kind in ("axis", "map", "history"):
        figure = make_figure(kind, data)
        points = next(trace for trace in figure.data if trace.name == "coarse")
        assert points.type == "scattergl"
        assert len(points.x) == 10_000
        assert len(figure.data) <= 6
        assert isinstance(json.loads(figure.to_json())["data"][list(figure.data).index(points)]["y"]["bdata"], str)
    assert sum(len(trace.x) for trace in make_figure("curves", data).data) == 200 * 2


def test_more_trials_than_can_be_drawn_are_thinned_and_the_best_stay() -> None:
    study = spec()
    trials = [trial(n, 1.0 if n == 12_345 else 0.5, lr=1e-3, reg=1.0) for n in range(70_000)]
    figure = make_figure("history", FigureData(study, stages(study), trials))
    shown = traces(figure, "coarse")[0].x
    assert len(shown) <= 60_000
    assert 12_345 in shown
    assert "of 70,000 trials drawn" in figure.layout.title.subtitle.text


def test_figures_bring_no_background_and_no_theme(data: FigureData) -> None:
    for kind in KINDS:
        figure = make_figure(kind, data)
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert figure.layout.template.layout.to_plotly_json() == {}
        assert figure.layout.uirevision == "keep"


def test_an_unknown_kind_is_not_found(data: FigureData) -> None:
    with pytest.raises(NotFound, match="there is no figure 'pie'"):
        make_figure("pie", data)


@pytest.mark.parametrize(
    ("kind", "query", "text"),
    [
        ("map", {"x": "learning_rate"}, "unknown parameter 'learning_rate'. Known: lr, reg"),
        ("map", {"z": "lr"}, "unknown query parameter 'z'. Known: x, y"),
        ("axis", {"params": "lr,rag"}, "unknown parameter 'rag'; did you mean 'reg'? Known: lr, reg"),
        ("axis", {"columns": "0"}, "columns '0' is not a whole number from 1 to 6"),
        (
            "curves",
            {"metric": "val_los"},
            "unknown metric 'val_los'; did you mean 'val_loss'? Known: val_accuracy, val_loss",
        ),
        ("curves", {"trial": "x"}, "trial 'x' is not a whole number from 0 to 9007199254740992"),
        (
            "curves",
            {"trial": "1", "metric": "val_loss"},
            "trial shows every metric of one trial: give either trial or metric",
        ),
        ("history", {"x": "lr"}, "history takes no 'x'"),
    ],
)
def test_a_bad_query_names_what_is_known(data: FigureData, kind: str, query: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_figure(kind, data, query)
    assert str(caught.value) == text


def test_curves_of_a_trial_that_is_not_there(data: FigureData) -> None:
    with pytest.raises(NotFound, match="there is no trial 99"):
        make_figure("curves", data, {"trial": "99"})
