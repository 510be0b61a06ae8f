"""From Optuna's objects to documents and back, to the bit and the microsecond."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.study._frozen import FrozenStudy
from optuna.study._study_direction import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.http import encode
from hpsearch.integrations.optuna.backend import Created, Patch, StudyDocument, TrialDocument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
parse_distribution = lru_cache(maxsize=10_000)(json_to_distribution)
"""Distributions are immutable: equal texts share one."""
_STATES = {state.name: state for state in TrialState}


def attribute_text(key: str, value: Any) -> str:
    """An attribute as JSON. Raises TypeError or ValueError if JSON has no such value."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the attribute {key!r} cannot be kept: {error}; give what JSON can hold") from None


def values_document(values: Sequence[float] | None) -> list[float | str] | None:
    """Values of objectives, as they travel."""
    return None if values is None else [encode(float(value)) for value in values]


def micros(moment: datetime | None) -> int | None:
    """Microseconds since 1970 of a time, local if it has no zone."""
    return None if moment is None else (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND


def local_time(at: int | None) -> datetime | None:
    """The local time without zone, as Optuna wants it, of so many microseconds since 1970."""
    if at is None:
        return None
    seconds, rest = divmod(at, 1_000_000)
    return datetime.fromtimestamp(seconds).replace(microsecond=rest)


def template_document(trial: FrozenTrial) -> Patch:
    """All of a trial but its number and times."""
    patch: Patch = {
        "params": [
            [name, encode(float(d.to_internal_repr(trial.params[name]))), distribution_to_json(d)]
            for name, d in trial.distributions.items()
        ],
        "steps": [[int(step), encode(float(value))] for step, value in trial.intermediate_values.items()],
        "user": {key: attribute_text(key, value) for key, value in trial.user_attrs.items()},
        "system": {key: attribute_text(key, value) for key, value in trial.system_attrs.items()},
        "state": trial.state.name,
    }
    if (values := values_document(trial.values)) is not None:
        patch["values"] = values
    return patch


def to_trial(document: TrialDocument, distributions: Mapping[Any, tuple[str, BaseDistribution]]) -> FrozenTrial:
    """A trial of its document; ``distributions`` by key."""
    trial_id, number, state, values, started, ended, params, user, system, steps = document
    return FrozenTrial(
        number=number,
        state=_STATES[state],
        value=None,
        values=None if values is None else [float(value) for value in values],
        datetime_start=local_time(started),
        datetime_complete=local_time(ended),
        params={
            name: distributions[key][1].to_external_repr(float(value))
            for name, value, key in zip(params[::3], params[1::3], params[2::3], strict=True)
        },
        distributions={name: distributions[key][1] for name, key in zip(params[::3], params[2::3], strict=True)},
        user_attrs={key: json.loads(text) for key, text in user.items()},
        system_attrs={key: json.loads(text) for key, text in system.items()},
        intermediate_values=dict(zip(steps[::2], map(float, steps[1::2]), strict=True)),
        trial_id=trial_id,
    )


def to_study(document: StudyDocument) -> FrozenStudy:
    """A study of its document."""
    return FrozenStudy(
        study_name=document["name"],
        direction=None,
        directions=directions_of(document),
        user_attrs={key: json.loads(text) for key, text in document["user"].items()},
        system_attrs={key: json.loads(text) for key, text in document["system"].items()},
        study_id=document["id"],
    )


def directions_of(document: StudyDocument) -> list[StudyDirection]:
    """The directions of a study."""
    return [StudyDirection[name.upper()] for name in document["directions"]]


def created_trial(made: Created, template: Patch | None, times: Sequence[int | None]) -> FrozenTrial:
    """The trial that was made, empty and running or of a template."""
    if template is None:
        return to_trial([made["trial"], made["number"], "RUNNING", None, made["at"], None, [], {}, {}, []], {})
    given = template["params"]
    distributions = {i: (name, parse_distribution(text)) for i, (name, _, text) in enumerate(given)}
    params = [part for i, (name, value, _) in enumerate(given) for part in (name, value, i)]
    steps = [part for step in template["steps"] for part in step]
    attributes = (template["user"], template["system"], steps)
    head = [made["trial"], made["number"], template["state"], template.get("values"), *times]
    return to_trial([*head, params, *attributes], distributions)


def changed(trial: FrozenTrial, patch: Patch, at: int | None) -> FrozenTrial:
    """A copy of a trial with a patch applied at a time, but for params; the trial itself may be in others' hands."""
    new = copy.copy(trial)
    if steps := patch.get("steps"):
        new.intermediate_values = trial.intermediate_values | {step: float(value) for step, value in steps}
    if user := patch.get("user"):
        new.user_attrs = trial.user_attrs | {key: json.loads(text) for key, text in user.items()}
    if system := patch.get("system"):
        new.system_attrs = trial.system_attrs | {key: json.loads(text) for key, text in system.items()}
    if (values := patch.get("values")) is not None:
        new.values = [float(value) for value in values]
    if (name := patch.get("state")) is not None:
        new.state = _STATES[name]
        if new.state is TrialState.RUNNING:
            new.datetime_start = local_time(at)
        elif new.state.is_finished():
            new.datetime_complete = local_time(at)
    return new


def with_param(trial: FrozenTrial, name: str, internal: float, distribution: BaseDistribution) -> FrozenTrial:
    """A copy of a trial with one param more."""
    new = copy.copy(trial)
    new.params = {**trial.params, name: distribution.to_external_repr(internal)}
    new.distributions = {**trial.distributions, name: distribution}
    return new
