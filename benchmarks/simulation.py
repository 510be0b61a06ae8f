"""Searches on tabulated learning curves: ours, with the service's own engine, and those of other packages.

Everybody has one core. What takes time is training, by the table's cost of an epoch; what a search computes is free.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from benchmarks.tables import Table
from hpsearch.coordinator import Assignment, Coordinator
from hpsearch.spec import StudySpec
from hpsearch.store import WorkerHello
from hpsearch.testing.memory import MemoryStore
from hpsearch.trial import Action, Report, Result, TrialState

Point = tuple[float, float]
"""lr and reg."""
START = datetime(2026, 1, 1, tzinfo=UTC)
CHANCE_LOSS = math.log(10)
"""All tables are of ten classes."""
HOPELESS = 100
"""So many trials, all diverged, end a search; a Gaussian process over a thousand would take minutes to say no more."""


@dataclass(frozen=True)
class Ranges:
    """Where a search may sample: lr and reg, both log-uniform."""

    lr: tuple[float, float]
    reg: tuple[float, float]


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        point: lr and reg that it recommends; None if it has nothing to recommend.
        epochs: trained in all.
        seconds: simulated.
        notes: what to look at when a run is lost.
    """

    point: Point | None
    epochs: int
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)


# -- ours -------------------------------------------------------------------------------------------------------------


@dataclass
class _Clock:
    seconds: float = 0.0

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


class ServiceRun:
    """One study from its document to its end: coordinator and store are the service's, the worker reads the table.

    Args:
        spec: a study with an external objective over ``lr`` and ``reg``.
        table: the curves.
        width: trials that the worker trains at a time, in lockstep like a pack; 1: one after the other.
    """

    def __init__(self, spec: StudySpec, table: Table, width: int) -> None:
        self.spec = spec
        self.table = table
        self.width = width
        self.clock = _Clock()
        self.epochs = 0
        self.store = MemoryStore()
        self.coordinator = Coordinator(self.store, clock=self.clock, lease_ttl=timedelta(days=365))
        self._me = WorkerHello("simulated", None, {})

    def run(self) -> Found:
        self.coordinator.submit(self.spec)
        while held := self.coordinator.lease(self._me, self.width, study=self.spec.name):
            groups: dict[tuple[int, int], list[Assignment]] = {}
            for assignment in held:
                start = assignment.resume_from.step if assignment.resume_from else 0  # we keep every checkpoint
                groups.setdefault((start, assignment.lease.epochs), []).append(assignment)
            for (trained, epochs), group in groups.items():
                self._train(group, trained, epochs)
            self.coordinator.tick()
        study = self.store.study(self.spec.name)
        stages = self.store.stages(study.id)
        best = self.coordinator.insights.best(study, stages)
        point = (float(best.params["lr"]), float(best.params["reg"])) if best else None  # type: ignore[arg-type]
        shown = [
            f"{s.name}: {s.n_finished} × {s.spec.n_epochs}, "
            + ", ".join(f"{n} [{p.low:.2g}, {p.high:.2g}]" for n, p in s.space.items())  # type: ignore[union-attr]
            for s in stages
        ]
        notes = {"state": study.state, "why": study.reason, "stages": shown}
        return Found(point, self.epochs, self.clock.seconds, notes)

    def _train(self, group: list[Assignment], trained: int, epochs: int) -> None:
        """Some trials in lockstep from the epoch that they were left at to their ends."""
        curves = {a.lease.token: self._curves(a) for a in group}
        chance = {"diag/initial_loss": CHANCE_LOSS, "diag/chance_loss": CHANCE_LOSS}  # as our worker reports it
        for epoch in range(trained + 1, epochs + 1):
            self.clock.seconds += self._cost(len(curves))
            self.epochs += len(curves)
            reports = [
                Report(
                    token,
                    epoch,
                    {name: float(curve[epoch - 1]) for name, curve in metrics.items()} | (chance if epoch == 1 else {}),
                )
                for token, metrics in curves.items()
            ]
            decisions = {d.token: d for d in self.coordinator.report(self._me.name, reports)}
            results = []
            for report in reports:
                decision = decisions[report.token]
                value = report.metrics["val_accuracy"]
                if decision.action is not Action.ABANDON:
                    state = _state(value, decision.action, last=epoch == epochs)
                    if state is None:
                        continue
                    value_or_none = None if state is TrialState.DIVERGED else value
                    results.append(Result(report.token, state, value_or_none, decision.reason))
                del curves[report.token]
            if results:
                self.coordinator.finish(self._me.name, results)
            if not curves:
                return

    def _curves(self, assignment: Assignment) -> dict[str, Any]:
        params: Any = assignment.lease.params
        seed = assignment.seed % self.table.n_seeds
        return {
            name: self.table.curve(params["lr"], params["reg"], seed, name) for name in ("val_accuracy", "val_loss")
        }

    def _cost(self, n_trials: int) -> float:
        """Seconds of one epoch; a narrow pack is no faster than its trials one after the other."""
        plain, pack = self.table.plain_seconds, self.table.pack_seconds
        return min(n_trials * plain, max(plain, n_trials * pack))


def _state(value: float, action: Action, *, last: bool) -> TrialState | None:
    if not math.isfinite(value):
        return TrialState.DIVERGED
    if action is Action.STOP:
        return TrialState.PRUNED
    return TrialState.COMPLETED if last else None


# -- others -----------------------------------------------------------------------------------------------------------


class Search(Protocol):
    """Another package's search, one trial at a time."""

    def ask(self) -> Point:
        """Begin a trial."""
        ...

    def report(self, epoch: int, value: float, *, last: bool) -> bool:
        """Tell an epoch of the trial; whether it goes on."""
        ...

    def best(self) -> Point | None:
        """What the package calls the best trial."""
        ...


def run_peer(search: Search, table: Table, *, budget: int, epochs: int, seed: int) -> Found:
    """Trials one after the other until ``budget`` epochs are spent; the last one is given up where it does not fit.

    A trial that diverges ends there and costs no more, with the value 0, so that samplers learn from it. Where nothing
    has come out but that, :data:`HOPELESS` trials are enough.
    """
    rng = np.random.default_rng(seed)
    spent = n_trials = 0
    highest = 0.0
    while spent < budget and (highest or n_trials < HOPELESS):
        n_trials += 1
        curve = np.nan_to_num(table.curve(*search.ask(), int(rng.integers(table.n_seeds))))
        for epoch in range(1, epochs + 1):
            spent += 1
            value = float(curve[epoch - 1])
            highest = max(highest, value)
            last = epoch == epochs or value == 0.0
            if not search.report(epoch, value, last=last) or last or spent == budget:
                break
    return Found(search.best(), spent, spent * table.plain_seconds)


class OptunaSearch:
    """Optuna by ask and tell.

    Args:
        sampler: seed → sampler.
        pruner: None prunes nothing.
    """

    def __init__(self, ranges: Ranges, seed: int, sampler: Callable[[int], Any], pruner: Any = None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._pruned = optuna.trial.TrialState.PRUNED
        pruner = pruner or optuna.pruners.NopPruner()
        self._study = optuna.create_study(direction="maximize", sampler=sampler(seed), pruner=pruner)
        self._ranges = ranges

    def ask(self) -> Point:
        self._trial = self._study.ask()
        return (
            self._trial.suggest_float("lr", *self._ranges.lr, log=True),
            self._trial.suggest_float("reg", *self._ranges.reg, log=True),
        )

    def report(self, epoch: int, value: float, *, last: bool) -> bool:
        self._trial.report(value, epoch)
        if last:
            self._study.tell(self._trial, value)
        elif self._trial.should_prune():
            self._study.tell(self._trial, state=self._pruned)
            return False
        return True

    def best(self) -> Point | None:
        done = [t for t in self._study.trials if t.value is not None and t.state is not self._pruned]
        params = max(done, key=lambda t: t.value).params if done else None
        return (params["lr"], params["reg"]) if params else None


class RaySearch:
    """Ray Tune's ASHA over random samples: its scheduler and its distributions, driven without its processes."""

    def __init__(self, ranges: Ranges, seed: int, *, epochs: int) -> None:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        self._random = np.random.RandomState(seed)
        self._space = {"lr": tune.loguniform(*ranges.lr), "reg": tune.loguniform(*ranges.reg)}
        self._scheduler = ASHAScheduler(metric="val_accuracy", mode="max", max_t=epochs)
        self._last: list[tuple[float, Point]] = []

    def ask(self) -> Point:
        lr, reg = (float(d.sample(random_state=self._random)) for d in self._space.values())
        self._trial: Any = SimpleNamespace(trial_id=str(len(self._last)), config={"lr": lr, "reg": reg})
        self._last.append((0.0, (lr, reg)))
        self._scheduler.on_trial_add(None, self._trial)  # type: ignore[arg-type]
        return lr, reg

    def report(self, epoch: int, value: float, *, last: bool) -> bool:
        self._last[-1] = (value, self._last[-1][1])
        result = {"training_iteration": epoch, "val_accuracy": value}
        if not last:
            return bool(self._scheduler.on_trial_result(None, self._trial, result) == self._scheduler.CONTINUE)  # type: ignore[arg-type]
        self._scheduler.on_trial_complete(None, self._trial, result)  # type: ignore[arg-type]
        return False

    def best(self) -> Point | None:
        """As ``ResultGrid.get_best_result`` has it: the trial with the best last value."""
        return max(self._last)[1]


class SyneSearch:
    """Syne Tune's ASHA, driven without its backend."""

    def __init__(self, ranges: Ranges, seed: int, *, epochs: int) -> None:
        from syne_tune.config_space import loguniform
        from syne_tune.optimizer.baselines import ASHA

        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        space = {"lr": loguniform(*ranges.lr), "reg": loguniform(*ranges.reg)}
        self._scheduler = ASHA(
            space, metric="val_accuracy", time_attr="epoch", max_t=epochs, do_minimize=False, random_seed=seed
        )
        self._results: list[tuple[float, Point]] = []
        self._n_trials = 0

    def ask(self) -> Point:
        from syne_tune.backend.trial_status import Trial

        suggestion = self._scheduler.suggest()
        self._trial = Trial(self._n_trials, suggestion.config, START)
        self._n_trials += 1
        self._scheduler.on_trial_add(self._trial)
        return suggestion.config["lr"], suggestion.config["reg"]

    def report(self, epoch: int, value: float, *, last: bool) -> bool:
        config = self._trial.config
        self._results.append((value, (float(config["lr"]), float(config["reg"]))))  # type: ignore[arg-type]
        result = {"epoch": epoch, "val_accuracy": value}
        if not last:
            return bool(self._scheduler.on_trial_result(self._trial, result) == "CONTINUE")
        self._scheduler.on_trial_complete(self._trial, result)
        return False

    def best(self) -> Point | None:
        """As ``Tuner.best_config`` has it: the configuration of the best result of any trial."""
        return max(self._results)[1]


def peers(ranges: Ranges, *, epochs: int, seed: int) -> dict[str, Callable[[], Search]]:
    """Name → its search, with the defaults of its package."""
    import optuna

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.simplefilter("ignore")
    samplers = optuna.samplers
    hyperband = lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs)  # noqa: E731
    return {
        "Optuna Random": lambda: OptunaSearch(ranges, seed, lambda s: samplers.RandomSampler(seed=s)),
        "Optuna TPE": lambda: OptunaSearch(ranges, seed, lambda s: samplers.TPESampler(seed=s)),
        "Optuna TPE + Hyperband": lambda: OptunaSearch(
            ranges, seed, lambda s: samplers.TPESampler(seed=s), hyperband()
        ),
        "Optuna GP": lambda: OptunaSearch(ranges, seed, lambda s: samplers.GPSampler(seed=s)),
        "Ray Tune ASHA": lambda: RaySearch(ranges, seed, epochs=epochs),
        "Syne Tune ASHA": lambda: SyneSearch(ranges, seed, epochs=epochs),
    }
