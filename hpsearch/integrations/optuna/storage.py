"""Optuna's storage over a :class:`Backend`: the same behind HTTP and over a store of this process."""

from __future__ import annotations

import atexit
import copy
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study._frozen import FrozenStudy
from optuna.study._study_direction import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.errors import Conflict, HpsearchError, ServerRefused
from hpsearch.http import encode
from hpsearch.integrations.optuna import documents
from hpsearch.integrations.optuna.backend import Backend, Needs, Outcome, Patch, StudyDocument, View, optuna_errors
from hpsearch.integrations.optuna.cache import Owned, StudyCache
from hpsearch.integrations.optuna.pending import Flusher, Pending

StaleCallback = Callable[[Study, FrozenTrial], None]

_LIVE: weakref.WeakSet[BackendStorage] = weakref.WeakSet()


class BackendStorage(BaseStorage, BaseHeartbeat):
    """A complete ``optuna.storages.BaseStorage``; see docs/optuna.md.

    Params, reports and attributes of a running trial that this process started may wait for up to
    ``linger_seconds`` before they are sent, all together. They never wait longer than until the next call that needs
    an answer, and are durable before a change of their trial's state is. Every other write is durable when it
    returns.

    It may be used from several threads, pickled, and used on after a fork.

    Args:
        linger_seconds: how long a write may wait for others; 0 sends each at once.
        heartbeat_interval: seconds between two signs of life of a running trial; None sends none.
        grace_period: seconds without one after which a trial is stale; twice the interval by default.
        heartbeat_stale_trial_callback: called with each trial that was found stale and failed.
    """

    _inherited: Backend | None = None
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
        self._lock = threading.RLock()
        self._backend = self._connect()
        self._closes = weakref.finalize(self, self._backend.close)
        self._closes.atexit = False  # then what waits is sent first
        self._studies: dict[int, StudyCache] = {}
        self._places: dict[int, tuple[int, int]] = {}  # trial id → study id, number
        self._owned = Owned()
        self._pending = Pending()
        self._lost: dict[int, Exception] = {}
        self._flusher = Flusher(self, self.linger_seconds)
        _LIVE.add(self)

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {name: value for name, value in self.__dict__.items() if name in self._settings()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _settings(self) -> tuple[str, ...]:
        """Names of the attributes that a copy of this storage begins with."""
        return ("linger_seconds", "heartbeat_interval", "grace_period", "heartbeat_stale_trial_callback")

    def close(self) -> None:
        """Send what waits, and let go of connections."""
        self.flush()
        self._closes()

    # -- studies ------------------------------------------------------------------------------------------------

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """See BaseStorage."""
        names = [direction.name.lower() for direction in directions]
        try:
            with optuna_errors():
                document = self._backend.create_study(study_name, names, uuid.uuid4().hex)
        except Conflict as error:
            raise DuplicatedStudyError(str(error)) from error
        except ServerRefused as error:
            raise DuplicatedStudyError(str(error)) if error.status == 409 else error from error
        with self._lock:
            self._remember(document)
        return document["id"]

    def delete_study(self, study_id: int) -> None:
        """See BaseStorage."""
        with self._lock, optuna_errors():
            self.flush()
            self._backend.delete_study(study_id)
            self._studies.pop(study_id, None)
            for trial_id in [trial_id for trial_id, place in self._places.items() if place[0] == study_id]:
                del self._places[trial_id]
                self._owned.drop(trial_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._set_study_attr(study_id, "user", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See BaseStorage."""
        self._set_study_attr(study_id, "system", key, value)

    def _set_study_attr(self, study_id: int, kind: str, key: str, value: Any) -> None:
        text = documents.attribute_text(key, value)
        with optuna_errors():
            self._backend.set_attributes(study_id, kind, {key: text})

    def get_study_id_from_name(self, study_name: str) -> int:
        """See BaseStorage."""
        with optuna_errors():
            document = self._backend.study(name=study_name)
        with self._lock:
            self._remember(document)
        return document["id"]

    def get_study_name_from_id(self, study_id: int) -> str:
        """See BaseStorage."""
        with self._lock:
            cache = self._studies.get(study_id)
        return self._study(study_id).study_name if cache is None or cache.name is None else cache.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See BaseStorage."""
        with self._lock:
            cache = self._studies.get(study_id)
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
            return [documents.to_study(document) for document in self._backend.studies()]

    def _study(self, study_id: int) -> FrozenStudy:
        with optuna_errors():
            document = self._backend.study(study_id=study_id)
        with self._lock:
            self._remember(document)
        return documents.to_study(document)

    def _remember(self, document: StudyDocument) -> None:
        cache = self._studies.setdefault(document["id"], StudyCache(document["id"]))
        cache.name = document["name"]
        cache.directions = documents.directions_of(document)

    # -- writing trials -----------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See BaseStorage."""
        template: Patch | None = None
        times: tuple[int | None, ...] = (None, None)
        if template_trial is not None:
            template = documents.template_document(template_trial)
            times = tuple(map(documents.micros, (template_trial.datetime_start, template_trial.datetime_complete)))
        with self._lock, optuna_errors():
            self.flush()
            made = self._backend.create_trial(study_id, template, times, uuid.uuid4().hex)
            cache = self._studies.setdefault(study_id, StudyCache(study_id))
            self._put(cache, documents.created_trial(made, template, times))
            cache.saw(made["event"], made["number"])
            if template_trial is None or template_trial.state is TrialState.RUNNING:
                self._owned.confirm(made["trial"])
            return made["trial"]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See BaseStorage.

        A parameter whose distribution this client knows is checked here, another one by the service.
        """
        internal = float(param_value_internal)
        param = [param_name, encode(internal), distribution_to_json(distribution)]
        with self._lock:
            trial = self._updatable(trial_id)
            cache = self._cache_of(trial_id)
            known = None if cache is None else cache.known.get(param_name)
            if known is not None:
                check_distribution_compatibility(known, distribution)
            self._write({"trial": trial_id, "params": [param]}, at_once=known is None)
            if cache is not None:
                cache.known.setdefault(param_name, distribution)
                if trial is not None:
                    self._put(cache, documents.with_param(trial, param_name, internal, distribution))

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
        with self._lock:
            trial = self._updatable(trial_id)
            self._write(patch)
            self._change(trial, patch, None)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See BaseStorage."""
        patch: Patch = {"trial": trial_id, "state": state.name, "key": uuid.uuid4().hex}
        if (given := documents.values_document(values)) is not None:
            patch["values"] = given
        with self._lock:
            trial = self._updatable(trial_id)
            outcome = self._write(patch, at_once=True)
            assert outcome is not None
            if outcome["outcome"] == "unchanged":
                return False
            if state is TrialState.RUNNING:
                self._owned.confirm(trial_id)
            else:
                self._owned.drop(trial_id)
            self._change(trial, patch, outcome["at"])
            return True

    def _updatable(self, trial_id: int) -> FrozenTrial | None:
        """The trial as far as it is known here. Raises if it has ended, or what was written to it before is lost."""
        if (error := self._lost.pop(trial_id, None)) is not None:
            raise error
        trial = self._known(trial_id)
        if trial is not None and trial.state.is_finished():
            raise _finished(trial.number)
        return trial

    def _change(self, trial: FrozenTrial | None, patch: Patch, at: int | None) -> None:
        cache = None if trial is None else self._cache_of(trial._trial_id)
        if trial is not None and cache is not None:
            self._put(cache, documents.changed(trial, patch, at))

    def _write(self, patch: Patch, *, at_once: bool = False) -> Outcome | None:
        """Send a patch with all that waits, or let it wait, if its trial is ours."""
        if not at_once and self.linger_seconds > 0 and patch["trial"] in self._owned:
            self._pending.add(patch)
            self._flusher.wake()
            return None
        with optuna_errors():
            outcomes = self._backend.apply(patches := self._pending.with_last(patch))
        self._settle(patches[:-1], outcomes[:-1])
        self._saw(outcomes[-1], patch)
        if outcomes[-1]["outcome"] not in ("applied", "unchanged"):
            self._owned.drop(patch["trial"])
        _check(patch["trial"], outcomes[-1])
        return outcomes[-1]

    def flush(self) -> None:
        """Send what waits."""
        with self._lock:
            if self._pending:
                patches = self._pending.with_last()
                self._settle(patches, self._backend.apply(patches))

    def _settle(self, patches: Sequence[Patch], outcomes: Sequence[Outcome]) -> None:
        """What waited has been sent; what was not taken is raised by the next write to its trial."""
        self._pending.clear()
        for patch, outcome in zip(patches, outcomes, strict=True):
            self._saw(outcome, patch)
            try:
                _check(patch["trial"], outcome)
                self._owned.confirm(patch["trial"])
            except (KeyError, ValueError, HpsearchError, UpdateFinishedTrialError) as error:
                self._lost[patch["trial"]] = error
                self._owned.drop(patch["trial"])

    def _saw(self, outcome: Outcome, patch: Patch) -> None:
        if (cache := self._cache_of(patch["trial"])) is not None:
            cache.saw(outcome["event"])

    # -- reading trials -----------------------------------------------------------------------------------------

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See BaseStorage."""
        with self._lock:
            trial = self._known(trial_id)
            if trial is not None and (trial.state.is_finished() or self._owned.is_fresh(trial_id)):
                return trial
            return self._fetch(trial_id)

    def _fetch(self, trial_id: int) -> FrozenTrial:
        self.flush()
        with optuna_errors():
            study_id, view = self._backend.trial(trial_id)
        cache = self._studies.setdefault(study_id, StudyCache(study_id))
        (trial,) = cache.read(view)
        self._put(cache, trial)
        if trial.state is not TrialState.RUNNING:
            self._owned.drop(trial_id)
        elif trial_id in self._owned:
            self._owned.confirm(trial_id)
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See BaseStorage."""
        with self._lock:
            trials = self._select(study_id, states)
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """See BaseStorage."""
        with self._lock:
            cache = self._studies.get(study_id)
            trial = None if cache is None else cache.at(trial_number)
            if trial is None and (trial := self._sync(study_id, "ended").at(trial_number)) is None:
                raise KeyError(f"there is no trial {trial_number} in the study {study_id}")
            return trial._trial_id

    def get_trial_number_from_id(self, trial_id: int) -> int:
        """See BaseStorage."""
        with self._lock:
            place = self._places.get(trial_id)
        return self.get_trial(trial_id).number if place is None else place[1]

    def remove_session(self) -> None:
        """See BaseStorage. Sends what waits."""
        self.flush()

    def _select(self, study_id: int, states: Container[TrialState] | None) -> list[FrozenTrial]:
        wanted = [state for state in TrialState if states is None or state in states]
        if wanted == [TrialState.WAITING]:
            return self._waiting(study_id)
        return self._sync(study_id, "all" if TrialState.RUNNING in wanted else "ended").select(states)

    def _waiting(self, study_id: int) -> list[FrozenTrial]:
        """Trials that wait; where they are few, without asking for anything else."""
        cache = self._studies.setdefault(study_id, StudyCache(study_id))
        if not cache.select((TrialState.WAITING,)):
            view = self._exchange(cache, "waiting")
            if not view["more"]:
                found = cache.read(view)
                for trial in found:
                    self._put(cache, trial)
                return found
        return self._sync(study_id, "ended").select((TrialState.WAITING,))

    def _exchange(self, cache: StudyCache, needs: Needs) -> View:
        patches = self._pending.with_last()
        try:
            with optuna_errors():
                outcomes, view = self._backend.sync(cache.study_id, cache.position, patches, needs)
        except KeyError:
            self._studies.pop(cache.study_id, None)
            raise
        self._settle(patches, outcomes)
        return view

    def _sync(self, study_id: int, needs: Needs) -> StudyCache:
        cache = self._studies.setdefault(study_id, StudyCache(study_id))
        while True:
            view = self._exchange(cache, needs)
            cache.merge(view)
            for document in view["trials"]:
                self._places[document[0]] = (study_id, document[1])
                if document[0] in self._owned:
                    self._owned.confirm(document[0])
            if not view["more"]:
                return cache

    def _cache_of(self, trial_id: int) -> StudyCache | None:
        place = self._places.get(trial_id)
        return None if place is None else self._studies.get(place[0])

    def _known(self, trial_id: int) -> FrozenTrial | None:
        cache = self._cache_of(trial_id)
        return None if cache is None else cache.at(self._places[trial_id][1])

    def _put(self, cache: StudyCache, trial: FrozenTrial) -> None:
        cache.put(trial)
        self._places[trial._trial_id] = (cache.study_id, trial.number)

    # -- heartbeats ---------------------------------------------------------------------------------------------

    def record_heartbeat(self, trial_id: int) -> None:
        """See BaseHeartbeat. Waits for nothing else that this storage does."""
        with optuna_errors():
            self._backend.heartbeat(trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        assert self.heartbeat_interval is not None
        grace = 2 * self.heartbeat_interval if self.grace_period is None else self.grace_period
        with optuna_errors():
            return self._backend.stale_trials(study_id, float(grace))

    def get_heartbeat_interval(self) -> int | None:
        """See BaseHeartbeat."""
        return self.heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> StaleCallback | None:
        """See BaseHeartbeat."""
        return self.heartbeat_stale_trial_callback


def _finished(number: int | None) -> UpdateFinishedTrialError:
    return UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")


def _check(trial_id: int, outcome: Outcome) -> None:
    """Raise if a patch was not taken."""
    match outcome["outcome"]:
        case "missing":
            raise KeyError(f"there is no trial {trial_id}")
        case "finished":
            raise _finished(outcome["number"])
        case "refused":
            raise HpsearchError(
                f"trial {outcome['number']} is of a study that workers of the service train: Optuna may read it only"
            )
    if outcome["unfit"]:
        raise ValueError("; ".join(outcome["unfit"].values()))


def _flush_all() -> None:
    for storage in list(_LIVE):
        try:
            storage.flush()
        except HpsearchError:
            continue  # the thread that sends has said so


def _restart_all() -> None:
    for storage in list(_LIVE):
        storage._closes.detach()
        storage._inherited = storage._backend
        storage._start()


atexit.register(_flush_all)
os.register_at_fork(after_in_child=_restart_all)
