"""Samplers: what each draws, alone and through a coordinator."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from scipy.stats import qmc

from hpsearch.coordinator import Assignment, Coordinator
from hpsearch.errors import InvalidInput, InvalidSpec
from hpsearch.methods import Sampler
from hpsearch.search.samplers import AdaptiveSampler, adaptive_numbers, grid_points, spread
from hpsearch.search.sampling import lies_in, sample
from hpsearch.search.scale import to_unit
from hpsearch.space import CategoricalParam, FloatParam, IntParam, Params, Space
from hpsearch.spec import Metric, StudySpec, parse_study
from hpsearch.store import Store, TrialQuery, WorkerHello, all_trials
from hpsearch.study import StudyState
from hpsearch.testing import MemoryStore
from hpsearch.trial import Result, Trial, TrialState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
METRIC = Metric(name="score", direction="maximize")
LR = FloatParam(type="float", low=1e-6, high=1e-1, log=True)
SPACE: Space = {
    "lr": LR,
    "width": IntParam(type="int", low=10, high=100),
    "kind": CategoricalParam(type="categorical", choices=["a", [1, 2], True]),
}
PLANE: Space = {name: FloatParam(type="float", low=0.0, high=1.0) for name in ("x", "y")}
BOX: Space = {name: FloatParam(type="float", low=0.2, high=1.0) for name in ("x", "y")}


# Random, with a box left out


def test_nothing_is_drawn_in_what_is_excluded() -> None:
    points = [sample(PLANE, seed=3, stage=1, number=n, exclude=BOX) for n in range(500)]
    assert not any(lies_in(BOX, p) for p in points)
    free = [sample(PLANE, seed=3, stage=1, number=n) for n in range(500)]
    assert [p for p in free if not lies_in(BOX, p)] == [
        p for p, q in zip(points, free, strict=True) if not lies_in(BOX, q)
    ], "a point outside of the box is what it would be without it"
    # uniform on what is left: the band x < 0.2 holds 0.2 of 0.36; the standard error of 500 draws is 0.022
    assert sum(p["x"] < 0.2 for p in points) / 500 == pytest.approx(0.2 / 0.36, abs=0.09)  # type: ignore[operator]


def test_a_box_that_leaves_nothing_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.search.sampling.MAX_REJECTED", 50)
    monkeypatch.setattr("hpsearch.search.samplers.sequences.MAX_REJECTED", 50)
    with pytest.raises(InvalidInput, match="not one lies outside"):
        sample(PLANE, seed=0, stage=0, number=0, exclude=PLANE)
    with pytest.raises(InvalidInput, match="not one lies outside"):
        spread("sobol", PLANE, seed=0, stage=0, index=0, count=1, exclude=PLANE)


# Sequences


@pytest.mark.parametrize("name", ["sobol", "halton"])
def test_a_point_depends_on_seed_stage_and_place_alone(name: str) -> None:
    whole = spread(name, SPACE, seed=5, stage=2, index=0, count=100)
    assert spread(name, SPACE, seed=5, stage=2, index=37, count=30) == whole[37:67]
    assert [spread(name, SPACE, seed=5, stage=2, index=i, count=1)[0] for i in (0, 1, 64, 99)] == [
        whole[i] for i in (0, 1, 64, 99)
    ]
    assert spread(name, SPACE, seed=6, stage=2, index=0, count=100) != whole
    assert spread(name, SPACE, seed=5, stage=1, index=0, count=100) != whole
    assert all(param.contains(p[key]) for p in whole for key, param in SPACE.items())
    turned = dict(reversed(SPACE.items()))
    assert spread(name, turned, seed=5, stage=2, index=3, count=1) == [whole[3]]


@pytest.mark.parametrize("name", ["sobol", "halton"])
def test_a_sequence_is_more_even_than_random_points(name: str) -> None:
    def discrepancy(points: list[Params]) -> float:
        return float(qmc.discrepancy([[to_unit(PLANE[key], p[key]) for key in PLANE] for p in points]))

    random = [discrepancy([sample(PLANE, seed=s, stage=0, number=n) for n in range(64)]) for s in range(10)]
    even = [discrepancy(spread(name, PLANE, seed=s, stage=0, index=0, count=64)) for s in range(10)]
    assert max(even) < min(random)


@pytest.mark.parametrize("name", ["sobol", "halton"])
def test_a_sequence_leaves_out_what_is_excluded(name: str) -> None:
    whole = spread(name, PLANE, seed=0, stage=0, index=0, count=200)
    outside = [p for p in whole if not lies_in(BOX, p)]
    found = spread(name, PLANE, seed=0, stage=0, index=0, count=20, exclude=BOX)
    assert found == outside[:20]
    assert spread(name, PLANE, seed=0, stage=0, index=7, count=5, exclude=BOX) == outside[7:12]


# The grid


def test_a_grid_is_as_fine_as_the_trials_allow() -> None:
    points = grid_points(PLANE, Sampler(name="grid"), 20, seed=0, stage=0)
    assert sorted((p["x"], p["y"]) for p in points) == [(x / 4, y / 3) for x in range(5) for y in range(4)]
    assert points != sorted(points, key=lambda p: (p["x"], p["y"]))
    assert points == grid_points(PLANE, Sampler(name="grid"), 20, seed=0, stage=0)
    assert points != grid_points(PLANE, Sampler(name="grid"), 20, seed=1, stage=0)


def test_choices_and_whole_numbers_have_the_levels_that_there_are() -> None:
    space: Space = {"n": IntParam(type="int", low=1, high=3), "kind": SPACE["kind"], "lr": LR}
    points = grid_points(space, Sampler(name="grid"), 100, seed=0, stage=0)
    assert len(points) == 99  # 3 · 3 · 11
    assert sorted({p["n"] for p in points}) == [1, 2, 3]  # type: ignore[type-var]
    assert {repr(p["kind"]) for p in points} == {"'a'", "[1, 2]", "True"}
    lr = sorted({p["lr"] for p in points})  # type: ignore[type-var]
    assert lr == pytest.approx([10 ** (-6 + i / 2) for i in range(11)])
    assert len({repr(p) for p in points}) == 99


@pytest.mark.parametrize(("levels", "n"), [(3, 9), ({"x": 7}, 14), ({"x": 2, "y": 3}, 6), ({"x": 1, "y": 1}, 1)])
def test_levels_are_as_asked_for(levels: Any, n: int) -> None:
    points = grid_points(PLANE, Sampler(name="grid", options={"levels": levels}), 15, seed=0, stage=0)
    assert len(points) == n
    if n == 1:
        assert points == [{"x": 0.5, "y": 0.5}]
    assert len(grid_points(PLANE, Sampler(name="grid", options={"levels": 4}), 15, seed=0, stage=0)) == 15


def test_a_grid_leaves_out_what_is_excluded() -> None:
    points = grid_points(PLANE, Sampler(name="grid", options={"levels": 6}), 36, seed=0, stage=0, exclude=BOX)
    assert len(points) == 11
    assert all(p["x"] == 0 or p["y"] == 0 for p in points)


# Samplers that learn


def ended(number: int, params: Params, value: float | None, state: TrialState = TrialState.COMPLETED) -> Trial:
    at = NOW + timedelta(seconds=number)
    return Trial(number, "a", state, params, value, 1, None, 1, "w", at, at, at if state.is_finished else None)


def peak(params: Params) -> float:
    """Best at x = 0.3, y = 0.8."""
    x, y = params["x"], params["y"]
    assert isinstance(x, float)
    assert isinstance(y, float)
    return -((x - 0.3) ** 2) - (y - 0.8) ** 2


LEARNING = ["tpe", "gp", "cmaes", "NSGAIISampler"]


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_a_sampler_learns_where_it_is_good(name: str) -> None:
    sampler = AdaptiveSampler(Sampler(name=name), PLANE, METRIC, seed=0, stage=0)
    values = []
    for number in range(40 if name == "gp" else 80):
        params = sampler.draw(number)
        values.append(peak(params))
        sampler.learn([ended(number, params, values[-1])])
    first, last = sum(values[:10]) / 10, sum(values[-10:]) / 10
    assert last > first / 3  # less than a third of the squared distance from the peak
    assert all(0 <= params[key] <= 1 for key in PLANE)  # type: ignore[operator]


@pytest.mark.parametrize("name", LEARNING)
def test_what_is_drawn_follows_from_the_seed_and_what_is_known(name: str) -> None:
    known = [ended(n, p, peak(p)) for n in range(15) for p in [sample(PLANE, seed=1, stage=0, number=n)]]

    def draw(seed: int, number: int) -> Params:
        sampler = AdaptiveSampler(Sampler(name=name), PLANE, METRIC, seed=seed, stage=0)
        sampler.learn(known)
        return sampler.draw(number)

    assert draw(0, 15) == draw(0, 15)
    assert draw(0, 15) != draw(0, 16)
    assert draw(0, 15) != draw(1, 15)


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_running_trials_keep_others_away(name: str) -> None:
    """A pack drawn at once must not be one point many times, though nothing is learned between the draws."""
    sampler = AdaptiveSampler(Sampler(name=name), PLANE, METRIC, seed=0, stage=0)
    sampler.learn(ended(n, p, peak(p)) for n in range(30) for p in [sample(PLANE, seed=1, stage=0, number=n)])
    pack = [sampler.draw(number) for number in range(30, 36)]
    assert len({(p["x"], p["y"]) for p in pack}) == 6
    gaps = [math.dist(list(p.values()), list(q.values())) for i, p in enumerate(pack) for q in pack[:i]]  # type: ignore[arg-type]
    assert min(gaps) > 1e-3


def test_choices_come_back_as_themselves() -> None:
    sampler = AdaptiveSampler(Sampler(name="tpe"), SPACE, METRIC, seed=0, stage=0)
    for number in range(30):
        params = sampler.draw(number)
        assert list(params) == list(SPACE)
        assert all(param.contains(params[name]) for name, param in SPACE.items())
        good = params["kind"] == [1, 2]
        sampler.learn([ended(number, params, float(good))])
    assert sum(sampler.draw(number)["kind"] == [1, 2] for number in range(30, 40)) >= 7


def test_diverged_and_stopped_trials_count_as_bad() -> None:
    sampler = AdaptiveSampler(Sampler(name="tpe"), PLANE, METRIC, seed=0, stage=0)
    for n in range(40):
        params = sample(PLANE, seed=1, stage=0, number=n)
        state = TrialState.DIVERGED if params["x"] > 0.5 else TrialState.COMPLETED  # type: ignore[operator]
        sampler.learn([ended(n, params, None if state is TrialState.DIVERGED else 0.0, state)])
    drawn = [sampler.draw(number)["x"] for number in range(40, 60)]
    assert sum(x < 0.5 for x in drawn) >= 16  # type: ignore[operator]


def test_a_promoted_trial_is_learned_again() -> None:
    sampler = AdaptiveSampler(Sampler(name="tpe"), PLANE, METRIC, seed=0, stage=0)
    params = sampler.draw(0)
    states = (TrialState.PRUNED, TrialState.QUEUED, TrialState.RUNNING, TrialState.COMPLETED, TrialState.COMPLETED)
    for state in states:
        sampler.learn([ended(0, params, 0.5 if state.is_finished else None, state)])
    found = sampler._study.get_trials()
    assert [trial.state.name for trial in found] == ["PRUNED", "COMPLETE"]
    assert found[0].intermediate_values == {1: 0.5}


def test_what_lies_outside_is_not_learned_from() -> None:
    sampler = AdaptiveSampler(Sampler(name="tpe"), PLANE, METRIC, seed=0, stage=0)
    sampler.learn([ended(0, {"x": 2.0, "y": 0.0}, 1.0), ended(1, {"x": 0.5}, 1.0), ended(2, {"x": 0.5, "y": 0.5}, 1.0)])
    assert [trial.params for trial in sampler._study.get_trials()] == [{"x": 0.5, "y": 0.5}]


def test_who_depends_on_results_is_known() -> None:
    trials = [ended(n, {}, 0.0) for n in range(20)]  # each is created as it ends
    assert adaptive_numbers(Sampler(name="random"), trials) == set()
    assert adaptive_numbers(Sampler(name="sobol"), trials) == set()
    assert adaptive_numbers(Sampler(name="tpe"), trials) == set(range(9, 20))
    assert adaptive_numbers(Sampler(name="tpe", options={"n_startup_trials": 15}), trials) == set(range(14, 20))
    assert adaptive_numbers(Sampler(name="NSGAIISampler"), trials) == set(range(20))
    before = [ended(n - 20, {}, 0.0) for n in range(20)]
    assert adaptive_numbers(Sampler(name="tpe"), trials, inherited=before) == set(range(20))


# The document


def document(sampler: Any, **changes: Any) -> dict[str, Any]:
    return {
        "name": "s",
        "objective": {"kind": "external"},
        "metric": {"name": "score", "direction": "maximize"},
        "space": {name: param.model_dump(exclude_none=True) for name, param in PLANE.items()},
        "stages": [{"name": "only", "trials": 30, "sampler": sampler}],
        **changes,
    }


@pytest.mark.parametrize(
    ("sampler", "loc", "says"),
    [
        ("sobel", "sampler", "did you mean 'sobol'"),
        ({"name": "sobol", "levels": 3}, "sampler.levels", "takes no options"),
        ({"name": "grid", "level": 3}, "sampler.level", "did you mean 'levels'"),
        ({"name": "grid", "levels": 0}, "sampler.levels", "from 1 to 10,000, but is 0"),
        ({"name": "grid", "levels": {"x": 1.5}}, "sampler.levels.x", "but is 1.5"),
        ({"levels": 3}, "sampler", "neither a sampler's name"),
        (3, "sampler", "3 is neither"),
        ({"name": "grid", "levels": 6}, "sampler", "36 points \\(6 of x · 6 of y\\), and the stage 30 trials"),
        ({"name": "grid", "levels": {"z": 2}}, "sampler.levels.z", "no parameter 'z'"),
        ({"name": "tpe", "n_startup_trails": 5}, "sampler.n_startup_trails", "did you mean 'n_startup_trials'"),
        ({"name": "tpe", "n_startup_trials": "five"}, "sampler.n_startup_trials", "but is 'five'"),
        ({"name": "tpe", "gamma": 3}, "sampler.gamma", "unknown option 'gamma'"),
        ({"name": "tpe", "seed": 3}, "sampler.seed", "unknown option 'seed'"),
        ({"name": "cmaes", "lr_adapt": True, "with_margin": True}, "sampler", "Optuna refuses"),
        ("TPESampller", "sampler", "sampler 'TPESampller'"),
        ("TPSampler", "sampler", "did you mean 'TPESampler'"),
        ("QMCSampler", "sampler", "give sobol or halton"),
        ("BaseSampler", "sampler", "unknown sampler"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_that_cannot_be_is_refused(sampler: Any, loc: str, says: str) -> None:
    with pytest.raises(InvalidSpec, match=says) as caught:
        Coordinator(MemoryStore()).submit(parse_study(document(sampler)))
    assert [fault.loc for fault in caught.value.faults] == [f"stages.0.{loc}"]


@pytest.mark.parametrize("missing", ["optuna", "torch", "cmaes"])
def test_a_package_that_is_missing_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.search.samplers.adaptive.find_spec", lambda name: None if name == missing else name)
    name = {"optuna": "tpe", "torch": "gp", "cmaes": "cmaes"}[missing]
    with pytest.raises(InvalidSpec, match="install hpsearch"):
        Coordinator(MemoryStore()).submit(parse_study(document(name)))
    Coordinator(MemoryStore()).submit(parse_study(document("random")))


@pytest.mark.parametrize("sampler", ["random", "tpe", {"name": "grid", "levels": {"x": 3}}, "NSGAIISampler"])
def test_a_sampler_reads_back_as_it_was_written(sampler: Any) -> None:
    spec = parse_study(document(sampler))
    assert spec.model_dump(mode="json")["stages"][0]["sampler"] == sampler
    assert StudySpec.model_validate_json(spec.model_dump_json()) == spec


# Through a coordinator


def start(sampler: Any, *, store: Store | None = None, **changes: Any) -> Coordinator:
    coordinator = Coordinator(store or MemoryStore(), lease_ttl=timedelta(hours=1))
    coordinator.submit(parse_study(document(sampler, **changes)))
    return coordinator


def ask(coordinator: Coordinator, capacity: int = 1) -> list[Assignment]:
    return coordinator.lease(WorkerHello("w", None, {}), capacity, study="s")


def tell(coordinator: Coordinator, leases: list[Assignment]) -> None:
    results = [Result(a.lease.token, TrialState.COMPLETED, peak(a.lease.params)) for a in leases]
    assert all(outcome.accepted for outcome in coordinator.finish("w", results))


def params_of(coordinator: Coordinator) -> list[Params]:
    study = coordinator.store.study("s")
    return [t.params for t in all_trials(coordinator.store, study.id, TrialQuery())]


@pytest.mark.parametrize("sampler", ["sobol", "halton", "grid", "random"])
def test_how_workers_ask_does_not_matter(sampler: str) -> None:
    seen = []
    for capacities in ([30], [1] * 30, [7, 3, 20]):
        coordinator = start(sampler)
        while coordinator.store.study("s").state is StudyState.RUNNING:
            tell(coordinator, ask(coordinator, capacities.pop(0) if capacities else 9))
        seen.append(params_of(coordinator))
    assert seen[0] == seen[1] == seen[2]
    assert len({tuple(p.values()) for p in seen[0]}) == len(seen[0]) == 30  # of the grid 6 · 5


def test_a_grid_ends_with_its_points() -> None:
    coordinator = start({"name": "grid", "levels": 3})
    assert coordinator.store.stages(1)[0].n_trials == 9
    tell(coordinator, ask(coordinator, 20))
    assert coordinator.store.study("s").state is StudyState.COMPLETED
    assert len(params_of(coordinator)) == 9


def test_what_was_enqueued_takes_a_place_of_the_sequence() -> None:
    coordinator = start("sobol")
    coordinator.enqueue("s", [{"x": 0.5, "y": 0.5}] * 2)
    ask(coordinator, 30)
    whole = spread("sobol", PLANE, seed=0, stage=0, index=0, count=30)
    assert params_of(coordinator) == [{"x": 0.5, "y": 0.5}] * 2 + whole[2:]


def test_what_learns_is_drawn_when_it_is_asked_for() -> None:
    coordinator = start("tpe")
    assert len(ask(coordinator, 3)) == 3
    assert coordinator.store.stages(1)[0].n_created == 3
    assert len(start("random").lease(WorkerHello("w", None, {}), 3, study="s")) == 3


def test_a_study_with_a_sampler_that_learns_goes_to_its_end() -> None:
    coordinator = start("tpe", stages=[{"name": "only", "trials": 60, "sampler": "tpe"}])
    while leases := ask(coordinator, 2):
        tell(coordinator, leases)
    study = coordinator.store.study("s")
    assert study.state is StudyState.COMPLETED
    values = [peak(p) for p in params_of(coordinator)]
    assert sum(values[-20:]) / 20 > sum(values[:10]) / 10 / 3


def test_flags_leave_out_the_trials_that_followed_from_results() -> None:
    coordinator = start("tpe", stages=[{"name": "only", "trials": 40, "sampler": "tpe"}])
    while leases := ask(coordinator, 1):
        results = [Result(a.lease.token, TrialState.COMPLETED, a.lease.params["x"]) for a in leases]  # type: ignore[arg-type]
        coordinator.finish("w", results)
    stages = coordinator.store.stages(1)
    adaptive = coordinator.insights._adaptive(1, stages, stages[0])
    assert adaptive == set(range(10, 40)), "the best crowd at the border of x because the sampler went there"
    flags = coordinator.insights.flags(coordinator.store.study("s"), stages)
    assert [flag.level for flag in flags if flag.level in ("likely", "strong")] == []


def test_another_server_draws_the_same_from_the_same_log() -> None:
    one = start("tpe")
    store = one.store
    for _ in range(13):
        tell(one, ask(one))
    other = Coordinator(store, lease_ttl=timedelta(hours=1))
    (mine,) = ask(other)
    fresh = Coordinator(store, lease_ttl=timedelta(hours=1))
    other.release("w", [mine.lease.token])
    assert ask(fresh)[0].lease.params == mine.lease.params
    rerun = start("tpe")
    for _ in range(13):
        tell(rerun, ask(rerun))
    assert ask(rerun)[0].lease.params == mine.lease.params


def test_servers_that_take_turns_never_draw_one_number_twice() -> None:
    store = MemoryStore()
    servers = [start("tpe", store=store), start("tpe", store=store)]
    for turn in range(30):
        tell(servers[turn % 2], ask(servers[turn % 2]))
    assert len(params_of(servers[0])) == 30
    assert store.study("s").state is StudyState.COMPLETED
    learner = servers[0].drawer._learner("s", 1, 0)
    assert sorted(learner._sampler._ended)[:28] == list(range(28)), "what the other one drew is learned from, too"


def test_a_draw_that_came_too_late_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = start("tpe")
    add = coordinator.store.add_trials
    monkeypatch.setattr(coordinator.store, "add_trials", lambda *args, **options: False)
    study, stage = coordinator.store.stages_with_room(study="s")[0]
    coordinator.drawer.create(study, stage, 2, room=9)
    monkeypatch.setattr(coordinator.store, "add_trials", add)
    coordinator.drawer.create(study, stage, 2, room=9)
    trials = coordinator.drawer._learner("s", 1, 0)._sampler._study.get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "RUNNING", "RUNNING"]


def test_earlier_trials_and_given_params_are_known_to_a_sampler_that_learns() -> None:
    coordinator = start("tpe")
    points = [sample(PLANE, seed=9, stage=0, number=n) for n in range(60)]
    coordinator.add_finished("s", [(p, TrialState.COMPLETED, peak(p)) for p in points])
    coordinator.enqueue("s", [{"x": 0.3, "y": 0.8}])
    tell(coordinator, ask(coordinator))
    values = []
    for _ in range(12):
        leases = ask(coordinator)
        values.append(peak(leases[0].lease.params))
        tell(coordinator, leases)
    mean = sum(map(peak, points)) / 60
    assert sum(values) / 12 > mean / 3, "the first that it draws are good already"


def test_a_child_learns_from_its_parents_trials_of_equal_epochs() -> None:
    stages = [
        {"name": "coarse", "trials": 30},
        {"name": "fine", "trials": 5, "sampler": "tpe", "refine": "keep"},
    ]
    coordinator = start("random", stages=stages)
    while len(coordinator.store.stages(1)) == 1:
        tell(coordinator, ask(coordinator, 10))
    ask(coordinator, 2)
    known = coordinator.drawer._learner("s", 1, 1)._sampler._study.get_trials()
    assert [trial.state.name for trial in known] == ["COMPLETE"] * 30 + ["RUNNING"] * 2
