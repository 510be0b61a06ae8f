"""Creating the trials of a stage that samples: how many at a time, and with which sampler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache

from hpsearch.errors import NotFound
from hpsearch.insight import Insights
from hpsearch.search.samplers import AdaptiveSampler, grid_points, spread
from hpsearch.search.sampling import sample
from hpsearch.space import Params
from hpsearch.store import Store
from hpsearch.study import Event, Stage, Study
from hpsearch.trial import Trial, TrialState

QUEUE_AHEAD = 64
"""At least so many trials are created at a time, if the stage has room and its sampler needs no results."""
KEPT_STAGES = 32
"""Stages whose adaptive sampler is kept in memory."""
EVENTS = 10_000
"""Events are read so many at a time."""


class Drawer:
    """Creates trials of stages that sample. Every method may be called from any thread."""

    def __init__(self, store: Store, insights: Insights, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._insights = insights
        self._clock = clock
        self._learner = lru_cache(maxsize=KEPT_STAGES)(self._new_learner)
        self._grid = lru_cache(maxsize=KEPT_STAGES)(self._new_grid)

    def create(self, study: Study, stage: Stage, wanted: int, *, room: int) -> bool:
        """Create up to ``wanted`` queued trials, or more; none where another server was faster.

        Args:
            study: whose next number the first new trial gets.
            stage: the one to sample, as it was at the same moment: a place in it that is out of date meets a number
                that is, too.
            wanted: how many can be leased now, at least 1.
            room: at most so many, at least 1.

        Returns:
            False if there is nothing left to create: the grid is used up, or the study was deleted just now.
        """
        try:
            if not stage.spec.sampler.is_own:
                learner = self._learner(study.name, study.id, stage.index)
                learner.create(min(wanted, room), self._clock())
                return True
            count = min(room, stage.n_trials - stage.n_created, max(wanted, QUEUE_AHEAD))
            params = self._own(study, stage, count) if count > 0 else []
        except NotFound:
            return False
        if params:
            self._store.add_trials(stage.id, study.next_number, params, now=self._clock())
        return bool(params) or count <= 0

    def _own(self, study: Study, stage: Stage, count: int) -> list[Params]:
        """Params of the next trials, by number (random) or by place in the stage."""
        seed, name, exclude = study.spec.seed, stage.spec.sampler.name, stage.exclude
        if name == "grid":
            return list(self._grid(study.name, study.id, stage.index)[stage.n_created : stage.n_created + count])
        if name != "random":
            return spread(
                name, stage.space, seed=seed, stage=stage.index, index=stage.n_created, count=count, exclude=exclude
            )
        numbers = range(study.next_number, study.next_number + count)
        return [sample(stage.space, seed=seed, stage=stage.index, number=n, exclude=exclude) for n in numbers]

    def _new_grid(self, study: str, study_id: int, index: int) -> Sequence[Params]:
        stage = _stage_at(self._store, study_id, index)
        seed = self._store.study(study).spec.seed
        return grid_points(
            stage.space, stage.spec.sampler, stage.spec.n_trials, seed=seed, stage=index, exclude=stage.exclude
        )

    def _new_learner(self, study: str, study_id: int, index: int) -> Learner:
        del study_id  # part of the key: a study deleted and made anew has another
        return Learner(self._store, self._insights, self._store.study(study), index)


class Learner:
    """One stage's adaptive sampler, which follows the study's log."""

    def __init__(self, store: Store, insights: Insights, study: Study, index: int) -> None:
        self._store = store
        self._study = study
        self._index = index
        self._seen = store.last_event(study.id)
        stage = _stage_at(store, study.id, index)
        self._stage = stage.name
        self._lock = threading.Lock()
        self._sampler = AdaptiveSampler(
            stage.spec.sampler, stage.space, study.spec.metric, seed=study.spec.seed, stage=index
        )
        known = insights.evidence(study.id, store.stages(study.id), stage)
        self._sampler.learn(sorted(known, key=lambda t: (t.ended_at is None, t.ended_at or t.created_at, t.number)))

    def create(self, wanted: int, now: datetime) -> None:
        """Draw and create as many trials as are wanted and the stage has room for."""
        with self._lock:
            study = self._store.study(self._study.name)
            stage = _stage_at(self._store, self._study.id, self._index)
            count = min(wanted, stage.n_trials - stage.n_created)
            if count <= 0:
                return
            self._follow()
            numbers = range(study.next_number, study.next_number + count)
            params = [self._sampler.draw(number) for number in numbers]
            if not self._store.add_trials(stage.id, study.next_number, params, now=now):
                self._sampler.forget(numbers)

    def _follow(self) -> None:
        """Learn what happened since the last time."""
        while events := self._store.events(self._study.id, after=self._seen, limit=EVENTS):
            self._seen = events[-1].seq
            self._sampler.learn(_trial_of(e) for e in events if e.kind == "trial" and e.data["stage"] == self._stage)


def _stage_at(store: Store, study_id: int, index: int) -> Stage:
    """A stage as it is now. Raises NotFound if the study was deleted."""
    stages = store.stages(study_id)
    if len(stages) <= index:
        raise NotFound("study", study_id)
    return stages[index]


def _trial_of(event: Event) -> Trial:
    """The trial as its event tells of it."""
    data = event.data
    fields = {name: data[name] for name in ("number", "stage", "params", "value", "step", "reason")}
    state = TrialState(data["state"])
    ended_at = event.at if state.is_finished else None
    return Trial(
        **fields, state=state, n_attempts=0, worker=None, created_at=event.at, started_at=None, ended_at=ended_at
    )
