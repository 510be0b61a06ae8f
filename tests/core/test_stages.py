"""What follows a stage: the plan, stages past a border, a user's own, the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hpsearch.advancing import OwnStage
from hpsearch.coordinator import Coordinator
from hpsearch.errors import Conflict, InvalidInput, InvalidSpec, NotFound
from hpsearch.insight import progress
from hpsearch.space import Params
from hpsearch.spec import StudySpec, parse_study
from hpsearch.store import TrialQuery, WorkerHello, all_trials
from hpsearch.study import Border, Stage, StageState, Study, StudyState
from hpsearch.testing import MemoryStore
from hpsearch.trial import Report, Result, Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LR: dict[str, Any] = {"type": "float", "low": 1e-6, "high": 1e-3, "log": True}
REG: dict[str, Any] = {"type": "float", "low": 1e-5, "high": 1e5, "log": True}
COARSE: dict[str, Any] = {"name": "coarse", "trials": 60, "epochs": 2}
FINE: dict[str, Any] = {"name": "fine", "trials": 20, "epochs": 5}
Score = Callable[[Params], float]


def spec(*stages: dict[str, Any], lr: dict[str, Any] | None = None, **more: Any) -> StudySpec:
    document = {
        "name": "s",
        "objective": {"kind": "external"},
        "metric": {"name": "score", "direction": "maximize"},
        "space": {"lr": lr or LR, "reg": REG},
        "stages": list(stages) or [COARSE, FINE],
    }
    return parse_study(document | more)


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator(MemoryStore(), clock=lambda: NOW)


def best_at(lr: float) -> Score:
    """A bowl in lr, of one unit per decade; reg does not matter."""

    def score(params: Params) -> float:
        value = params["lr"]
        assert isinstance(value, float)
        return -abs(math.log10(value / lr))

    return score


def nothing_more(params: Params, step: int) -> dict[str, float]:
    del params, step
    return {}


def train(
    coordinator: Coordinator,
    score: Score,
    *,
    stage: str | None = None,
    more: Callable[[Params, int], dict[str, float]] = nothing_more,
) -> None:
    """Evaluate trials until none is handed out, or a later stage than ``stage`` is open; ``more`` is reported, too."""
    while leases := coordinator.lease(WorkerHello("w", None, {}), 8, study="s"):
        if stage is not None and leases[0].lease.stage != stage:
            coordinator.release("w", [a.lease.token for a in leases])
            return
        for a in leases:
            value = score(a.lease.params)
            steps = range(1, a.lease.epochs + 1)
            told = [Report(a.lease.token, n, {"score": value} | more(a.lease.params, n)) for n in steps]
            coordinator.report("w", told)
            state = TrialState.COMPLETED if math.isfinite(value) else TrialState.DIVERGED
            coordinator.finish("w", [Result(a.lease.token, state, value if math.isfinite(value) else None)])


def study_of(coordinator: Coordinator) -> Study:
    return coordinator.store.study("s")


def stages_of(coordinator: Coordinator) -> list[Stage]:
    return coordinator.store.stages(study_of(coordinator).id)


def trials_of(coordinator: Coordinator, stage: str) -> list[Trial]:
    return all_trials(coordinator.store, study_of(coordinator).id, TrialQuery(stage=stage))


def number(value: object) -> float:
    assert isinstance(value, int | float)
    return value


def names(coordinator: Coordinator) -> list[str]:
    return [p.name for p in coordinator.stages.proposals(study_of(coordinator), stages_of(coordinator))]


# -- past a border --------------------------------------------------------------------------------------------------


def test_a_range_that_ends_too_early_is_widened_by_itself(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}, FINE))
    train(coordinator, best_at(1e-2))
    coarse, wider, *rest = stages_of(coordinator)
    assert (coarse.name, wider.name, wider.parent, wider.extension, wider.plan) == (
        "coarse",
        "coarse-wider",
        "coarse",
        1,
        0,
    )
    assert number(getattr(wider.space["lr"], "high", None)) > 1e-3
    assert wider.exclude == coarse.space
    assert wider.n_trials < coarse.n_trials, "as dense as before, where nothing was tried yet"
    for trial in trials_of(coordinator, "coarse-wider"):
        assert number(trial.params["lr"]) > 1e-3, "what its parent has sampled is not trained again"
    assert rest[-1].name == "fine"
    study = study_of(coordinator)
    assert study.state is StudyState.COMPLETED
    best = coordinator.insights.best(study, stages_of(coordinator))
    assert best is not None
    assert best.value > -0.2
    done = progress(study, stages_of(coordinator))
    assert (done.finished, done.fraction) == (sum(s.n_trials for s in stages_of(coordinator)), 1.0)


def test_a_stage_past_a_border_inherits_its_parents_trials(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}))
    train(coordinator, best_at(1e-2), stage="coarse")
    study, stages = study_of(coordinator), stages_of(coordinator)
    evidence = coordinator.insights.evidence(study.id, stages, stages[1])
    low = number(getattr(stages[1].space["lr"], "low", None))
    inside = [t for t in trials_of(coordinator, "coarse") if number(t.params["lr"]) >= low]
    assert [t.number for t in evidence if t.stage == "coarse"] == [t.number for t in inside]
    assert coordinator.insights.n_inherited(study, stages, stages[1]) == len(inside) > 0
    assert coordinator.insights.n_inherited(study, stages, stages[0]) == 0


def test_extensions_end_at_their_number_and_at_the_hard_limit(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend", "max_extensions": 2}))
    train(coordinator, best_at(1e6))
    assert [s.name for s in stages_of(coordinator)] == ["coarse", "coarse-wider", "coarse-wider-2"]


def test_no_stage_goes_beyond_a_hard_limit(coordinator: Coordinator) -> None:
    limited = {**LR, "hard_high": 2e-3}
    coordinator.submit(spec({**COARSE, "on_border": "extend", "max_extensions": 5}, lr=limited))
    train(coordinator, best_at(1.0))
    assert all(number(t.params["lr"]) <= 2e-3 for s in stages_of(coordinator) for t in trials_of(coordinator, s.name))
    assert len(stages_of(coordinator)) == 2
    assert names(coordinator) == []


def test_a_bowl_inside_opens_nothing(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}))
    train(coordinator, best_at(3e-5))
    assert [s.name for s in stages_of(coordinator)] == ["coarse"]
    assert names(coordinator) == []


def test_an_extension_where_all_diverge_leaves_the_study_its_result(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}, FINE))
    edge = best_at(1e-2)
    train(coordinator, lambda params: edge(params) if number(params["lr"]) <= 1e-3 else math.nan)
    assert study_of(coordinator).state is StudyState.COMPLETED
    assert stages_of(coordinator)[1].counts[TrialState.DIVERGED] > 0


def test_a_range_of_lr_where_all_diverges_is_left_downward(coordinator: Coordinator) -> None:
    high = {**LR, "low": 1e-1, "high": 1e2}
    coordinator.submit(spec({**COARSE, "on_border": "extend"}, FINE, lr=high))
    bowl = best_at(1e-3)
    train(coordinator, lambda params: bowl(params) if number(params["lr"]) < 5e-2 else math.nan)
    coarse, lower, fine = stages_of(coordinator)[0], stages_of(coordinator)[1], stages_of(coordinator)[-1]
    assert (lower.name, lower.parent, lower.extension) == ("coarse-lower", "coarse", 1)
    assert "all 60 trials of coarse diverged" in (lower.reason or "")
    assert (lower.space["lr"].model_dump()["low"], lower.space["lr"].model_dump()["high"]) == (pytest.approx(1e-4), 0.1)
    assert coarse.counts[TrialState.COMPLETED] == 0
    assert fine.name == "fine"
    assert study_of(coordinator).state is StudyState.COMPLETED


def learns_above(lr: float) -> Callable[[Params, int], dict[str, float]]:
    """Losses that hardly move with rates below ``lr``."""

    def metrics(params: Params, step: int) -> dict[str, float]:
        learns = number(params["lr"]) > lr
        loss = 2.3 / (step + 1) if learns else 2.3 - 0.001 * step
        return {"train_loss": loss, "diag/update_ratio": 1e-3 if learns else 1e-6, "diag/initial_loss": 2.3}

    return metrics


def test_a_range_of_lr_where_nothing_learns_is_left_upward(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}, FINE))
    flat = lambda params: -1.0 if number(params["lr"]) < 1e-3 else best_at(1e-1)(params)  # noqa: E731
    train(coordinator, flat, more=learns_above(1e-3))
    coarse, higher, *_, fine = stages_of(coordinator)
    assert (higher.name, higher.parent, higher.extension) == ("coarse-higher", "coarse", 1)
    assert higher.reason == "60 of 60 trials of coarse learned too slowly: lr ends too low"
    assert higher.space["lr"].model_dump()["low"] == coarse.space["lr"].model_dump()["high"]
    assert higher.space["lr"].model_dump()["high"] == pytest.approx(1.0)
    assert fine.name == "fine"
    best = coordinator.insights.best(study_of(coordinator), stages_of(coordinator))
    assert best is not None
    assert best.value > -0.5


def test_a_range_of_reg_under_which_nothing_learns_is_left_downward(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}, FINE, space={"lr": LR, "reg": {**REG, "low": 10.0}}))

    def metrics(params: Params, step: int) -> dict[str, float]:
        loss = 2.3 / (step + 1) if number(params["reg"]) < 10.0 else 2.3
        return {"train_loss": loss, "val_loss": loss, "diag/update_ratio": 1e-3, "diag/initial_loss": 2.3}

    train(coordinator, lambda params: -max(math.log10(number(params["reg"])), 1.0), more=metrics)
    coarse, weaker, *_ = stages_of(coordinator)
    assert (weaker.name, weaker.parent) == ("coarse-weaker", "coarse")
    assert weaker.reason == "of 60 trials of coarse 0 diverged and 60 learned next to nothing: reg starts too high"
    reg = weaker.space["reg"].model_dump()
    assert (reg["low"], reg["high"]) == (pytest.approx(1e-3), 10.0)
    assert weaker.space["lr"] == coarse.space["lr"]


def test_where_nothing_learns_the_stage_beside_is_proposed(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE))
    train(coordinator, lambda _: -1.0, more=learns_above(1.0))
    assert names(coordinator) == ["coarse-higher"]
    stage = coordinator.stages.open(study_of(coordinator), OwnStage())
    assert stage.space["lr"].model_dump()["low"] == 1e-3


def test_nothing_is_above_a_hard_limit(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}, lr={**LR, "hard_high": 1e-3}))
    train(coordinator, lambda _: -1.0, more=learns_above(1.0))
    assert [s.name for s in stages_of(coordinator)] == ["coarse"]


def test_a_range_of_which_a_fifth_learns_is_not_left(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}))
    train(coordinator, best_at(3e-4), more=learns_above(2e-4))
    assert "coarse-higher" not in [s.name for s in stages_of(coordinator)]


def test_a_study_where_all_diverges_fails_in_the_end(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "on_border": "extend"}, lr={**LR, "hard_low": 1e-8}))
    train(coordinator, lambda _: math.nan)
    assert [s.name for s in stages_of(coordinator)] == ["coarse", "coarse-lower"]
    assert stages_of(coordinator)[1].space["lr"].model_dump()["low"] == 1e-8
    assert study_of(coordinator).state is StudyState.FAILED


def test_a_flag_proposes_what_one_call_opens_even_after_the_end(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE))
    train(coordinator, best_at(1e-2))
    study = study_of(coordinator)
    assert study.state is StudyState.COMPLETED
    (proposal,) = coordinator.stages.proposals(study, stages_of(coordinator))
    assert (proposal.kind, proposal.name) == ("extension", "coarse-wider")
    assert proposal.n_epochs == 2 * proposal.stage.n_trials
    assert "high border of lr" in proposal.reason
    opened = coordinator.open_stage(study, OwnStage())
    assert (opened.name, opened.state) == ("coarse-wider", StageState.RUNNING)
    assert study_of(coordinator).state is StudyState.RUNNING
    assert names(coordinator) == []
    train(coordinator, best_at(1e-2))
    assert study_of(coordinator).state is StudyState.COMPLETED


def test_an_acknowledged_flag_proposes_nothing_until_that_is_taken_back(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE))
    train(coordinator, best_at(1e-2))
    border = Border("coarse", "lr", "high")
    coordinator.acknowledge("s", border, "known")
    assert names(coordinator) == []
    coordinator.acknowledge("s", border, None)
    assert names(coordinator) == ["coarse-wider"]
    with pytest.raises(NotFound, match="momentum"):
        coordinator.acknowledge("s", Border("coarse", "momentum", "high"), "")
    with pytest.raises(NotFound, match="fine"):
        coordinator.acknowledge("s", Border("fine", "lr", "high"), "")


# -- by hand --------------------------------------------------------------------------------------------------------


def test_a_manual_stage_waits_and_opens_on_resuming(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE, {**FINE, "advance": "manual"}))
    train(coordinator, best_at(3e-5))
    held = study_of(coordinator)
    assert held.state is StudyState.PAUSED
    assert "'fine' waits for you" in (held.reason or "")
    coordinator.tick()
    assert study_of(coordinator) == held
    (proposal,) = coordinator.stages.proposals(held, stages_of(coordinator))
    assert (proposal.kind, proposal.name, proposal.n_epochs) == ("next", "fine", 100)
    coordinator.set_state("s", StudyState.RUNNING)
    assert stages_of(coordinator)[-1].space == proposal.stage.space
    train(coordinator, best_at(3e-5))
    assert study_of(coordinator).state is StudyState.COMPLETED


def test_a_proposal_is_edited_before_it_is_opened(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE, {**FINE, "advance": "manual"}))
    train(coordinator, best_at(3e-5))
    study = study_of(coordinator)
    asked = OwnStage(proposal="fine", trials=7, epochs=3, space={"lr": {"low": 1e-5, "high": 1e-4}})
    opened = coordinator.open_stage(study, asked)
    assert (opened.name, opened.n_trials, opened.spec.n_epochs, opened.plan) == ("fine", 7, 3, 1)
    assert opened.space["lr"].model_dump(include={"low", "high"}) == {"low": 1e-5, "high": 1e-4}
    assert opened.space["reg"].model_dump(include={"low"}) != {}
    assert study_of(coordinator).state is StudyState.RUNNING


def test_a_stage_of_ones_own_ends_what_runs_and_the_plan_goes_on(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE, FINE))
    train(coordinator, best_at(3e-5), stage="coarse")
    opened = coordinator.open_stage(study_of(coordinator), OwnStage(name="mine", parent="coarse", trials=3, epochs=4))
    coarse, fine, mine = stages_of(coordinator)
    assert (fine.state, mine.state, mine.parent, mine.plan) == (
        StageState.COMPLETED,
        StageState.RUNNING,
        "coarse",
        0,
    )
    assert mine.space != coarse.space, "it follows from its parent's trials unless a space is given"
    assert opened == mine
    train(coordinator, best_at(3e-5))
    assert [s.name for s in stages_of(coordinator)] == ["coarse", "fine", "mine", "fine-2"]
    assert study_of(coordinator).state is StudyState.COMPLETED


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"space": {"lr": {"type": "int"}}}, "lr is of type float"),
        ({"space": {"momentum": {"low": 0.0}}}, "no parameter 'momentum'"),
        ({"space": {"lr": {"low": 1.0}}}, "not below high"),
        ({"space": {"lr": {"high": 1.0}}}, "hard_high"),
        ({"space": {"lr": 3}}, "give what changes"),
        ({"trials": 0}, "trials"),
        ({"epochs": -1}, "epochs"),
        ({"name": "no name"}, "name"),
        ({"trials": 3, "top": 2}, "both trials and top"),
        ({"sampler": "best"}, "sampler"),
    ],
)
def test_what_is_no_stage_of_the_study_is_refused(
    coordinator: Coordinator, asked: dict[str, Any], message: str
) -> None:
    coordinator.submit(spec(COARSE, lr={**LR, "hard_high": 1e-2}))
    train(coordinator, best_at(3e-5))
    with pytest.raises(InvalidSpec, match=message):
        coordinator.open_stage(study_of(coordinator), OwnStage(**asked))
    assert len(stages_of(coordinator)) == 1


def test_what_cannot_be_opened_is_refused(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE))
    train(coordinator, best_at(3e-5))
    with pytest.raises(Conflict, match="no stage is proposed"):
        coordinator.open_stage(study_of(coordinator), OwnStage())
    with pytest.raises(NotFound, match="nowhere"):
        coordinator.open_stage(study_of(coordinator), OwnStage(name="x", parent="nowhere"))
    coordinator.open_stage(study_of(coordinator), OwnStage(name="x", trials=2))
    with pytest.raises(Conflict, match="'x'"):
        coordinator.open_stage(study_of(coordinator), OwnStage(name="x", trials=2))
    coordinator.set_state("s", StudyState.CANCELLED)
    with pytest.raises(Conflict, match="cancelled"):
        coordinator.open_stage(study_of(coordinator), OwnStage(trials=2))


def test_of_several_proposals_one_is_named(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE, {**FINE, "advance": "manual"}))
    train(coordinator, best_at(1e-2))
    assert names(coordinator) == ["coarse-wider", "fine"]
    with pytest.raises(InvalidInput, match="coarse-wider, fine"):
        coordinator.open_stage(study_of(coordinator), OwnStage())
    with pytest.raises(InvalidInput, match="no stage 'finer'"):
        coordinator.open_stage(study_of(coordinator), OwnStage(proposal="finer"))
    coordinator.open_stage(study_of(coordinator), OwnStage(proposal="coarse-wider"))
    train(coordinator, best_at(1e-2))
    assert study_of(coordinator).state is StudyState.PAUSED, "the plan goes on from the wider stage, by hand"


# -- the end --------------------------------------------------------------------------------------------------------


def test_a_study_ends_at_its_target(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE, FINE, stop={"target": -0.3}))
    train(coordinator, best_at(3e-5))
    study = study_of(coordinator)
    assert study.state is StudyState.COMPLETED
    assert "the target -0.3 was reached by trial" in (study.reason or "")
    assert len(trials_of(coordinator, "coarse")) <= 64
    assert [s.name for s in stages_of(coordinator)] == ["coarse"]


def test_a_study_spends_no_epoch_beyond_its_limit(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE, FINE, stop={"epochs": 133}))
    train(coordinator, best_at(3e-5))
    study = study_of(coordinator)
    assert study.state is StudyState.COMPLETED
    assert "the limit of 133 epochs leaves no room for another trial (130 trained)" in (study.reason or "")
    assert sum(s.n_epochs for s in stages_of(coordinator)) == 130, "60 coarse trials of 2 epochs, 2 fine ones of 5"


def test_a_study_ends_when_its_time_is_over() -> None:
    moments = [NOW]
    coordinator = Coordinator(MemoryStore(), clock=lambda: moments[0])
    coordinator.submit(spec(COARSE, stop={"seconds": 60}))
    moments[0] = NOW + timedelta(seconds=59)
    coordinator.tick()
    assert study_of(coordinator).state is StudyState.RUNNING
    moments[0] = NOW + timedelta(seconds=60)
    coordinator.tick()
    study = study_of(coordinator)
    assert study.state is StudyState.COMPLETED
    assert "60 seconds" in (study.reason or "")


def test_a_study_ends_when_nothing_better_is_to_be_expected(coordinator: Coordinator) -> None:
    coordinator.submit(spec({**COARSE, "trials": 400}, stop={"no_improvement": 10}))
    train(coordinator, lambda params: min(best_at(3e-5)(params), -0.5))
    study = study_of(coordinator)
    assert study.state is StudyState.COMPLETED
    assert "no improvement is to be expected" in (study.reason or "")
    assert stages_of(coordinator)[0].n_finished < 400


def test_a_confirm_stage_ends_when_its_winner_is_settled(coordinator: Coordinator) -> None:
    confirm = {"name": "confirm", "top": 3, "epochs": 5, "seeds": 50}
    coordinator.submit(spec(COARSE, confirm))
    train(coordinator, best_at(3e-5))
    study = study_of(coordinator)
    assert study.state is StudyState.COMPLETED
    stage = stages_of(coordinator)[1]
    assert stage.counts[TrialState.COMPLETED] < stage.n_trials == 150
    best = coordinator.insights.best(study, stages_of(coordinator))
    assert best is not None
    assert best.probability_best is not None
    assert best.probability_best > 0.95


def test_finalists_whose_order_stays_open_get_all_their_seeds(coordinator: Coordinator) -> None:
    coordinator.submit(spec(COARSE, {"name": "confirm", "top": 3, "epochs": 5, "seeds": 4}))
    values = iter(range(10_000))
    train(coordinator, lambda _: math.sin(next(values)))
    assert stages_of(coordinator)[1].counts[TrialState.COMPLETED] == 12
    assert study_of(coordinator).state is StudyState.COMPLETED
