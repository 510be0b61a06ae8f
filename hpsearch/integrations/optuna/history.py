"""The finished trials of an Optuna study, as a warm start of one of ours."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import optuna

from hpsearch.errors import InvalidInput
from hpsearch.space import Params, check_params
from hpsearch.spec import StudySpec
from hpsearch.trial import TrialState

_STATES = {
    optuna.trial.TrialState.COMPLETE: TrialState.COMPLETED,
    optuna.trial.TrialState.PRUNED: TrialState.PRUNED,
    optuna.trial.TrialState.FAIL: TrialState.FAILED,
}


@dataclass(frozen=True, slots=True)
class History:
    """Trials to be added, and why others cannot be: sentence → how many."""

    trials: list[tuple[Params, TrialState, float | None]]
    left_out: Counter[str]


def load_optuna_study(url: str, name: str | None) -> optuna.Study:
    """A study of an Optuna storage; the only one if no name is given.

    Raises:
        InvalidInput: the storage cannot be opened, or has no such study.
    """
    try:
        storage = optuna.storages.get_storage(url)
        names = optuna.get_all_study_names(storage)
    except Exception as error:  # any driver's
        said = str(error).split("\n", 1)[0]
        raise InvalidInput(f"{_shown(url)} cannot be read as a storage of Optuna: {said}") from None
    if name is None and len(names) != 1:
        raise InvalidInput(f"{_shown(url)} has {len(names)} studies: name one with --study{_listed(names)}")
    if name is not None and name not in names:
        raise InvalidInput(f"{_shown(url)} has no study {name!r}{_listed(names)}")
    return optuna.load_study(study_name=name or names[0], storage=storage)


def history(study: optuna.Study, spec: StudySpec) -> History:
    """What of a study fits the space of another.

    Raises:
        InvalidInput: it has several objectives, or the other direction.
    """
    if len(study.directions) > 1:
        raise InvalidInput(f"{study.study_name} has {len(study.directions)} objectives, and a study here has one")
    direction = study.direction.name.lower()
    if direction != spec.metric.direction:
        raise InvalidInput(f"{study.study_name} is to {direction} its value, and {spec.metric.name} to be otherwise")
    trials: list[tuple[Params, TrialState, float | None]] = []
    left_out: Counter[str] = Counter()
    for trial in study.get_trials(deepcopy=False, states=tuple(_STATES)):
        faults = check_params(spec.space, trial.params)
        if faults:
            left_out[f"{faults[0][0]}: {faults[0][1]}" if faults[0][0] not in trial.params else faults[0][1]] += 1
            continue
        state = _STATES[trial.state]
        trials.append((dict(trial.params), state, _value(trial, state)))
    return History(trials, left_out)


def _value(trial: optuna.trial.FrozenTrial, state: TrialState) -> float | None:
    """The value, or of a pruned trial the last that it reported."""
    if state is TrialState.FAILED:
        return None
    last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
    return last if trial.value is None else trial.value


def _listed(names: list[str]) -> str:
    return f"; it has {', '.join(names[:20])}" if names else ""


def _shown(url: str) -> str:
    """A URL without its password."""
    return url.rsplit("@", maxsplit=1)[-1]
