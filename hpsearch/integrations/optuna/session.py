"""What one process knows of studies, and what it has yet to send."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Container, Sequence

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hpsearch.errors import HpsearchError
from hpsearch.integrations.optuna import documents
from hpsearch.integrations.optuna.backend import (
    Backend,
    Needs,
    Outcome,
    Patch,
    StudyDocument,
    View,
    optuna_errors,
)
from hpsearch.integrations.optuna.cache import Owned, StudyCache
from hpsearch.integrations.optuna.pending import Flusher, Pending

_LIVE: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """One backend, the trials read from it, and the writes that wait. Whoever calls holds :attr:`lock`.

    Attributes:
        studies: what is known, by study.
        places: trial id → study id and number.
        owned: running trials that this process started.
    """

    def __init__(self, backend: Backend, linger_seconds: float) -> None:
        self.backend = backend
        self.lock = threading.RLock()
        self.studies: dict[int, StudyCache] = {}
        self.places: dict[int, tuple[int, int]] = {}
        self.owned = Owned()
        self._linger_seconds = linger_seconds
        self._pending = Pending()
        self._lost: dict[int, Exception] = {}
        self._flusher = Flusher(self, linger_seconds)
        self._closes = weakref.finalize(self, backend.close)
        self._closes.atexit = False  # then what waits is sent first
        _LIVE.add(self)

    def close(self) -> None:
        """Send what waits, and let go of connections."""
        self.flush()
        self._closes()

    def abandon(self) -> None:
        """Never touch the connections: they are the parent's, of which this process was forked."""
        self._closes.detach()
        _LIVE.discard(self)

    def forget(self, study_id: int) -> None:
        """A study is gone."""
        self.studies.pop(study_id, None)
        for trial_id in [trial_id for trial_id, place in self.places.items() if place[0] == study_id]:
            del self.places[trial_id]
            self.owned.drop(trial_id)

    def study(self, study_id: int) -> StudyCache:
        """What is known of a study, maybe nothing."""
        return self.studies.setdefault(study_id, StudyCache(study_id))

    def updatable(self, trial_id: int) -> FrozenTrial | None:
        """The trial as far as it is known here. Raises if it has ended, or what was written to it before is lost."""
        if (error := self._lost.pop(trial_id, None)) is not None:
            raise error
        trial = self.known(trial_id)
        if trial is not None and trial.state.is_finished():
            raise _finished(trial.number)
        return trial

    def change(self, trial: FrozenTrial | None, patch: Patch, at: int | None) -> None:
        """Apply a patch to what is known of a trial, too."""
        cache = None if trial is None else self.cache_of(trial._trial_id)
        if trial is not None and cache is not None:
            self.put(cache, documents.changed(trial, patch, at))

    def write(self, patch: Patch, *, at_once: bool = False) -> Outcome | None:
        """Send a patch with all that waits, or let it wait, if its trial is ours."""
        if not at_once and self._linger_seconds > 0 and patch["trial"] in self.owned:
            self._pending.add(patch)
            self._flusher.wake()
            return None
        with optuna_errors():
            outcomes = self.backend.apply(patches := self._pending.with_last(patch))
        self._settle(patches[:-1], outcomes[:-1])
        self._pending.drop(patch["trial"])
        self._saw(outcomes[-1], patch)
        if outcomes[-1]["outcome"] not in ("applied", "unchanged"):
            self.owned.drop(patch["trial"])
        _check(patch["trial"], outcomes[-1])
        return outcomes[-1]

    def flush(self) -> None:
        """Send what waits."""
        with self.lock:
            if self._pending:
                patches = self._pending.with_last()
                self._settle(patches, self.backend.apply(patches))

    def _settle(self, patches: Sequence[Patch], outcomes: Sequence[Outcome]) -> None:
        """What waited has been sent; what was not taken is raised by the next write to its trial."""
        for patch, outcome in zip(patches, outcomes, strict=True):
            self._pending.drop(patch["trial"])
            self._saw(outcome, patch)
            try:
                _check(patch["trial"], outcome)
                self.owned.confirm(patch["trial"])
            except (KeyError, ValueError, HpsearchError, UpdateFinishedTrialError) as error:
                self._lost[patch["trial"]] = error
                self.owned.drop(patch["trial"])

    def _saw(self, outcome: Outcome, patch: Patch) -> None:
        """What happened to a trial of others is read again: more may have happened to it than is known here."""
        cache = self.cache_of(patch["trial"]) if patch["trial"] in self.owned else None
        if cache is not None:
            cache.saw(outcome["event"])

    def fetch(self, trial_id: int) -> FrozenTrial:
        """A trial as the backend has it."""
        self.flush()
        with optuna_errors():
            study_id, view = self.backend.trial(trial_id)
        cache = self.study(study_id)
        (trial,) = cache.read(view)
        self.put(cache, trial)
        if trial.state is not TrialState.RUNNING:
            self.owned.drop(trial_id)
        elif trial_id in self.owned:
            self.owned.confirm(trial_id)
        return trial

    def select(self, study_id: int, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Trials in these states, by number; as little is asked for as tells them."""
        wanted = [state for state in TrialState if states is None or state in states]
        if wanted == [TrialState.WAITING]:
            return self._waiting(study_id)
        is_open = TrialState.RUNNING in wanted or TrialState.WAITING in wanted
        return self.sync(study_id, "all" if is_open else "ended").select(states)

    def _waiting(self, study_id: int) -> list[FrozenTrial]:
        """Trials that wait; where they are few, without asking for anything else."""
        cache = self.study(study_id)
        if not cache.select((TrialState.WAITING,)):
            view = self._exchange(cache, "waiting")
            if not view["more"]:
                found = cache.read(view)
                for trial in found:
                    self.put(cache, trial)
                return found
        return self.sync(study_id, "all").select((TrialState.WAITING,))  # one that waited may run now

    def _exchange(self, cache: StudyCache, needs: Needs) -> View:
        patches = self._pending.with_last() if needs == "all" else []  # what waits is of running trials
        try:
            with optuna_errors():
                outcomes, view = self.backend.sync(cache.study_id, cache.position, patches, needs)
        except KeyError:
            self.studies.pop(cache.study_id, None)
            raise
        self._settle(patches, outcomes)
        return view

    def sync(self, study_id: int, needs: Needs) -> StudyCache:
        """What is known of a study, once the backend has said what is new."""
        cache = self.study(study_id)
        while True:
            view = self._exchange(cache, needs)
            cache.merge(view, self._pending)
            for document in view["trials"]:
                self.places[document[0]] = (study_id, document[1])
                if document[0] in self.owned:
                    self.owned.confirm(document[0])
            if not view["more"]:
                return cache

    def cache_of(self, trial_id: int) -> StudyCache | None:
        """What is known of a trial's study."""
        place = self.places.get(trial_id)
        return None if place is None else self.studies.get(place[0])

    def known(self, trial_id: int) -> FrozenTrial | None:
        """A trial as far as it is known here."""
        cache = self.cache_of(trial_id)
        return None if cache is None else cache.at(self.places[trial_id][1])

    def put(self, cache: StudyCache, trial: FrozenTrial) -> None:
        """Keep a trial in place of what was known of it."""
        cache.put(trial)
        self.places[trial._trial_id] = (cache.study_id, trial.number)

    def remember(self, document: StudyDocument) -> None:
        """Keep what never changes of a study."""
        cache = self.study(document["id"])
        cache.name = document["name"]
        cache.directions = documents.directions_of(document)


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
    for session in list(_LIVE):
        try:
            session.flush()
        except HpsearchError:
            continue  # the thread that sends has said so


atexit.register(_flush_all)
