"""Optuna's storage over a :class:`Backend`: the same behind HTTP and over a store of this process."""

from __future__ import annotations

import copy
import os
import uuid
import weakref
from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study._frozen import FrozenStudy
from optuna.study._study_direction import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.errors import Conflict, ServerRefused
from hpsearch.http import encode
from hpsearch.integrations.optuna import documents
from hpsearch.integrations.optuna.backend import Backend, Patch, optuna_errors
from hpsearch.integrations.optuna.session import Session

StaleCallback = Callable[[Study, FrozenTrial], None]

_LIVE: weakref.WeakSet[BackendStorage] = weakref.WeakSet()


class BackendStorage(BaseStorage, BaseHeartbeat):
    """A complete ``optuna.storages.BaseStorage``; see docs/optuna.md.

    Params, reports and attributes of a running trial that this process started may wait for up to
    ``linger_seconds`` before they are sent, all together. They never wait longer than until running trials are read,
    and are durable before a change of their trial's state is. Every other write is durable when it returns.

    It may be used from several threads, pickled, and used on after a fork.

    Args:
        linger_seconds: how long a write may wait for others; 0 sends each at once.
        heartbeat_interval: seconds between two signs of life of a running trial; None sends none.
        grace_period: seconds without one after which a trial is stale; twice the interval by default.
        heartbeat_stale_trial_callback: called with each trial that was found stale and failed.
    """

    _inherited: Session | None = None
    """In the child of a fork: kept, lest its end say goodbye on the parent's connections."""

    def __init__(
        self,
        *,
        linger_seconds: float = 0.1,
        heartbeat_interval: int | None = None,
        grace_period: int | None = None,
        heartbeat_stale_trial_callback: StaleCallback | None = None,
    ) -> None:
        for name, seconds in (("heartbeat_interval", heartbeat_interval), ("grace_period", grace_period)):
            if seconds is not None and seconds <= 0:
                raise ValueError(f"{name} {seconds} is not above 0: give seconds, or None for no heartbeat")
        if linger_seconds < 0:
            raise ValueError(f"linger_seconds {linger_seconds} is below 0")
        self.linger_seconds = linger_seconds
        self.heartbeat_interval = heartbeat_interval
        self.grace_period = grace_period
        self.heartbeat_stale_trial_callback = heartbeat_stale_trial_callback
        self._start()

    def _connect(self) -> Backend:
        raise NotImplementedError

    def _start(self) -> None:
        """Begin with nothing known: at first, after pickling, and in the child of a fork."""
        self._session = Session(self._connect(), self.linger_seconds)
        _LIVE.add(self)

    def __getstate__(self) -> dict[str, Any]:
        self._session.flush()
        return {name: value for name, value in self.__dict__.items() if name in self._settings()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _settings(self) -> tuple[str, ...]:
        """Names of the attributes that a copy of this storage begins with."""
        return ("linger_seconds", "heartbeat_interval", "grace_period", "heartbeat_stale_trial_callback")

    def flush(self) -> None:
        """Send what waits."""
        self._session.flush()

    def close(self) -> None:
        """Send what waits, and let go of connections."""
        self._session.close()

    # -- studies ------------------------------------------------------------------------------------------------

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """See BaseStorage."""
        names = [direction.name.lower() for direction in directions]
        try:
            with optuna_errors():
                document = self._session.backend.create_study(study_name, names, uuid.uuid4().hex)
        except Conflict as error:
            raise DuplicatedStudyError(str(error)) from error
        except ServerRefused as error:
            raise DuplicatedStudyError(str(error)) if error.status == 409 else error from error
        with self._session.lock:
            self._session.remember(document)
        return document["id"]

    def delete_study(self, study_id: int) -> None:
        """See BaseStorage."""
        with self._session.lock, optuna_errors():
            self._session.flush()
            self._session.backend.delete_study(study_id)
            self._session.forget(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._set_study_attr(study_id, "user", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._set_study_attr(study_id, "system", key, value)

    def _set_study_attr(self, study_id: int, kind: str, key: str, value: Any) -> None:
        text = documents.attribute_text(key, value)
        with optuna_errors():
            self._session.backend.set_attributes(study_id, kind, {key: text})

    def get_study_id_from_name(self, study_name: str) -> int:
        """See BaseStorage."""
        with optuna_errors():
            document = self._session.backend.study(name=study_name)
        with self._session.lock:
            self._session.remember(document)
        return document["id"]

    def get_study_name_from_id(self, study_id: int) -> str:
        """See BaseStorage."""
        with self._session.lock:
            cache = self._session.studies.get(study_id)
        return self._study(study_id).study_name if cache is None or cache.name is None else cache.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See BaseStorage."""
        with self._session.lock:
            cache = self._session.studies.get(study_id)
        known = None if cache is None else cache.directions
        return self._study(study_id).directions if known is None else list(known)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See BaseStorage."""
        return self._study(study_id).user_attrs

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See BaseStorage."""
        return self._study(study_id).system_attrs

    def get_all_studies(self) -> list[FrozenStudy]:
        """See BaseStorage."""
        with optuna_errors():
            return [documents.to_study(document) for document in self._session.backend.studies()]

    def _study(self, study_id: int) -> FrozenStudy:
        with optuna_errors():
            document = self._session.backend.study(study_id=study_id)
        with self._session.lock:
            self._session.remember(document)
        return documents.to_study(document)

    # -- writing trials -----------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See BaseStorage."""
        template: Patch | None = None
        times: tuple[int | None, ...] = (None, None)
        if template_trial is not None:
            template = documents.template_document(template_trial)
            times = tuple(map(documents.micros, (template_trial.datetime_start, template_trial.datetime_complete)))
        with self._session.lock, optuna_errors():
            self._session.flush()
            made = self._session.backend.create_trial(study_id, template, times, uuid.uuid4().hex)
            cache = self._session.study(study_id)
            self._session.put(cache, documents.created_trial(made, template, times))
            cache.saw(made["event"], made["number"])
            if template_trial is None or template_trial.state is TrialState.RUNNING:
                self._session.owned.confirm(made["trial"])
            return made["trial"]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See BaseStorage.

        A parameter whose distribution this client knows is checked here, another one by the service.
        """
        internal = float(param_value_internal)
        param = [param_name, encode(internal), distribution_to_json(distribution)]
        with self._session.lock:
            trial = self._session.updatable(trial_id)
            cache = self._session.cache_of(trial_id)
            known = None if cache is None else cache.known.get(param_name)
            if known is not None:
                check_distribution_compatibility(known, distribution)
            self._session.write({"trial": trial_id, "params": [param]}, at_once=known is None)
            if cache is not None:
                cache.known.setdefault(param_name, distribution)
                if trial is not None:
                    self._session.put(cache, documents.with_param(trial, param_name, internal, distribution))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See BaseStorage."""
        self._set(trial_id, {"trial": trial_id, "steps": [[int(step), encode(float(intermediate_value))]]})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._set(trial_id, {"trial": trial_id, "user": {key: documents.attribute_text(key, value)}})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._set(trial_id, {"trial": trial_id, "system": {key: documents.attribute_text(key, value)}})

    def _set(self, trial_id: int, patch: Patch) -> None:
        with self._session.lock:
            trial = self._session.updatable(trial_id)
            self._session.write(patch)
            self._session.change(trial, patch, None)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See BaseStorage."""
        patch: Patch = {"trial": trial_id, "state": state.name, "key": uuid.uuid4().hex}
        if (given := documents.values_document(values)) is not None:
            patch["values"] = given
        with self._session.lock:
            trial = self._session.updatable(trial_id)
            is_owned = trial_id in self._session.owned
            outcome = self._session.write(patch, at_once=True)
            assert outcome is not None
            if outcome["outcome"] == "unchanged":
                return False
            if is_owned or state is TrialState.RUNNING:
                self._session.change(trial, patch, outcome["at"])
            else:
                self._session.places.pop(trial_id, None)  # others may have written to it: it is read again
            if state is TrialState.RUNNING:
                self._session.owned.confirm(trial_id)
            else:
                self._session.owned.drop(trial_id)
            return True

    # -- reading trials -----------------------------------------------------------------------------------------

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See BaseStorage."""
        with self._session.lock:
            trial = self._session.known(trial_id)
            if trial is not None and (trial.state.is_finished() or self._session.owned.is_fresh(trial_id)):
                return trial
            return self._session.fetch(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See BaseStorage."""
        with self._session.lock:
            trials = self._session.select(study_id, states)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """See BaseStorage."""
        with self._session.lock:
            cache = self._session.studies.get(study_id)
            trial = None if cache is None else cache.at(trial_number)
            if trial is None and (trial := self._session.sync(study_id, "ended").at(trial_number)) is None:
                raise KeyError(f"there is no trial {trial_number} in the study {study_id}")
            return trial._trial_id

    def get_trial_number_from_id(self, trial_id: int) -> int:
        """See BaseStorage."""
        with self._session.lock:
            place = self._session.places.get(trial_id)
        return self.get_trial(trial_id).number if place is None else place[1]

    def remove_session(self) -> None:
        """See BaseStorage. Sends what waits."""
        self._session.flush()

    # -- heartbeats ---------------------------------------------------------------------------------------------

    def record_heartbeat(self, trial_id: int) -> None:
        """See BaseHeartbeat. Waits for nothing else that this storage does."""
        with optuna_errors():
            self._session.backend.heartbeat(trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        assert self.heartbeat_interval is not None
        grace = 2 * self.heartbeat_interval if self.grace_period is None else self.grace_period
        with optuna_errors():
            return self._session.backend.stale_trials(study_id, float(grace))

    def get_heartbeat_interval(self) -> int | None:
        """See BaseHeartbeat."""
        return self.heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> StaleCallback | None:
        """See BaseHeartbeat."""
        return self.heartbeat_stale_trial_callback


def _restart_all() -> None:
    for storage in list(_LIVE):
        storage._session.abandon()
        storage._inherited = storage._session
        storage._start()


os.register_at_fork(after_in_child=_restart_all)
