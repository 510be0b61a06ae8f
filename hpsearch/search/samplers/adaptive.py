"""Samplers that learn from finished trials: Optuna's, by name, through Optuna itself.

A stage has one Optuna study in memory, fed trial by trial, so that a draw costs what the sampler costs. Before each
draw the sampler is made anew with a seed of (study's seed, stage, trial's number): what it draws follows from that and
from the trials known by then.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hpsearch.document import unknown
from hpsearch.methods import Sampler
from hpsearch.search.sampling import Purpose
from hpsearch.space import CategoricalParam, Params, Space
from hpsearch.spec import Metric
from hpsearch.trial import Trial, TrialState

_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "dict[str, Any]": dict[str, Any]}
_OPTION_TYPES: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(of) for name, of in _TYPES.items()} | {
    f"{name} | None": TypeAdapter(of | None) for name, of in _TYPES.items()
}
"""Annotations of the options that a document can say, as Optuna writes them."""

_OURS = {
    "RandomSampler": "random",
    "GridSampler": "grid",
    "BruteForceSampler": "grid",
    "QMCSampler": "sobol or halton",
    "PartialFixedSampler": "a space without the fixed parameters",
}
"""Optuna's samplers that need more than finished trials, with what does the same here."""

_NEEDS = {"GPSampler": ("torch", "train"), "CmaEsSampler": ("cmaes", "server")}
"""Packages that Optuna asks for when such a sampler draws, and our extra that has them."""


def sampler_fault(sampler: Sampler) -> tuple[str, str] | None:
    """What is wrong with an Optuna sampler: the option (or nothing), and a sentence; None if it can be used."""
    if find_spec("optuna") is None:
        return "", f"the sampler {sampler.name!r} is Optuna's, which is not installed here: install hpsearch[server]"
    name = sampler.optuna_class
    if name in _OURS:
        return "", f"Optuna's {name} cannot be used here: give {_OURS[name]}"
    if (kind := _classes().get(name)) is None:
        return "", unknown(name, sorted(_classes()), what="sampler")
    package, extra = _NEEDS.get(name, ("optuna", "server"))
    if find_spec(package) is None:
        return "", f"the sampler {sampler.name!r} needs the package {package}: install hpsearch[{extra}] on the server"
    known = _options(kind)
    for option, value in sampler.options.items():
        if option not in known:
            return option, unknown(option, sorted(known), what="option")
        try:
            known[option].validate_python(value, strict=not isinstance(value, int))
        except ValidationError as error:
            return option, f"{error.errors()[0]['msg']}, but is {value!r}"
    try:
        kind(**sampler.options, seed=0)
    except (TypeError, ValueError, AssertionError) as error:
        return "", f"Optuna refuses these options: {error}"
    return None


def _classes() -> dict[str, Any]:
    """Optuna's samplers by class name, those that may be used."""
    import optuna  # heavy: a client does without

    found = {name: getattr(optuna.samplers, name) for name in optuna.samplers.__all__ if name not in _OURS}
    return {name: kind for name, kind in found.items() if "seed" in _parameters(kind)}


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind.__init__).parameters) if inspect.isclass(kind) else {}


def _options(kind: Any) -> dict[str, TypeAdapter[Any]]:
    """What a document may say of a sampler: option → its type."""
    found = {name: _OPTION_TYPES.get(str(p.annotation)) for name, p in _parameters(kind).items() if name != "seed"}
    return {name: of for name, of in found.items() if of is not None}


def n_startup(sampler: Sampler) -> int:
    """How many trials must have ended before an Optuna sampler learns from them."""
    given = sampler.options.get("n_startup_trials")
    if given is None:
        parameter = _parameters(_classes()[sampler.optuna_class]).get("n_startup_trials")
        return int(parameter.default) if parameter is not None else 0
    return int(given)


def adaptive_numbers(sampler: Sampler, trials: Iterable[Trial], *, inherited: Sequence[Trial] = ()) -> set[int]:
    """Numbers of the trials whose params depended on earlier results; none of a sampler of ours.

    A trial does if, when it was created, as many others had ended as the sampler needs to learn. Trials whose params
    were given count as the others do, for nothing tells them apart.

    Args:
        sampler: of the stage.
        trials: of the stage.
        inherited: trials of other stages that the sampler learned from.
    """
    if sampler.is_own:
        return set()
    own = list(trials)
    ends = np.array(sorted(t.ended_at.timestamp() for t in [*own, *inherited] if t.ended_at is not None))
    known = np.searchsorted(ends, [t.created_at.timestamp() for t in own], side="right")
    least = max(n_startup(sampler), 1)
    return {trial.number for trial, n in zip(own, known, strict=True) if n >= least}


class AdaptiveSampler:
    """One stage's sampler, with the trials that it knows. Not for several threads at once.

    Args:
        sampler: for which :func:`sampler_fault` finds nothing.
        space: of the stage.
        metric: of the study.
        seed: of the study.
        stage: index of the stage.
    """

    def __init__(self, sampler: Sampler, space: Space, metric: Metric, *, seed: int, stage: int) -> None:
        import optuna  # heavy: a client does without

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would write a line for every trial
        self._optuna = optuna
        self._kind = _classes()[sampler.optuna_class]
        self._options = dict(sampler.options)
        if (warns := _parameters(self._kind).get("warn_independent_sampling")) is not None and warns.default is True:
            self._options.setdefault("warn_independent_sampling", False)  # that choices are drawn apart is well known
        self._space = space
        self._distributions: dict[str, Any] = {name: space[name].distribution for name in sorted(space)}
        self._seed = (seed, stage)
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(storage=self._storage, study_name="stage", direction=metric.direction)
        self._running: dict[int, int] = {}
        """Trial → its number in Optuna's study, of those that have not ended there."""
        self._ended: dict[int, tuple[TrialState, int]] = {}
        """Trial → how it ended there, and at which step; a promoted one ends again."""

    def draw(self, number: int) -> Params:
        """The params of a new trial, which counts as running from now on."""
        seed = int(np.random.SeedSequence((*self._seed, Purpose.SAMPLER, number)).generate_state(1)[0])
        self._study.sampler = self._kind(**self._options, seed=seed)
        trial = self._study.ask(dict(self._distributions))
        self._running[number] = trial.number
        return {name: self._value(name, trial.params[name]) for name in self._space}

    def forget(self, numbers: Iterable[int]) -> None:
        """Trials that were drawn and are not there after all."""
        for number in numbers:
            self._study.tell(self._running.pop(number), state=self._optuna.trial.TrialState.FAIL)

    def learn(self, trials: Iterable[Trial]) -> None:
        """Take note of where trials stand; one that lies outside of the stage's space says nothing.

        A diverged trial counts as worse than any other, a pruned one by its last value at its step.
        """
        for trial in trials:
            is_known = trial.number in self._running or self._ended.get(trial.number) == (trial.state, trial.step)
            if trial.state is TrialState.QUEUED or (not is_known and not self._add(trial)):
                continue
            if trial.state.is_finished and trial.number in self._running:
                self._end(trial, self._running.pop(trial.number))
                self._ended[trial.number] = (trial.state, trial.step)

    def _add(self, trial: Trial) -> bool:
        """Add a running trial that was drawn elsewhere; False if Optuna cannot hold its params."""
        if trial.params.keys() != self._space.keys():
            return False
        try:
            params = {name: self._internal(name, trial.params) for name in self._distributions}
            frozen = self._optuna.trial.create_trial(
                state=self._optuna.trial.TrialState.RUNNING, params=params, distributions=self._distributions
            )
        except ValueError:
            return False
        self._running[trial.number] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(frozen)
        return True

    def _end(self, trial: Trial, number: int) -> None:
        states = self._optuna.trial.TrialState
        if trial.state is TrialState.COMPLETED and trial.value is not None:
            self._study.tell(number, trial.value)
        elif trial.state in (TrialState.PRUNED, TrialState.DIVERGED):
            if trial.value is not None:
                study_id = self._storage.get_study_id_from_name("stage")
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
                self._storage.set_trial_intermediate_value(trial_id, trial.step, trial.value)
            self._study.tell(number, state=states.PRUNED)
        else:
            self._study.tell(number, state=states.FAIL)

    def _value(self, name: str, drawn: Any) -> Any:
        param = self._space[name]
        return param.choices[drawn] if isinstance(param, CategoricalParam) else drawn

    def _internal(self, name: str, params: Params) -> Any:
        param = self._space[name]
        return param.index(params[name]) if isinstance(param, CategoricalParam) else params[name]
