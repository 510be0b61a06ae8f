"""What a client knows of a study: trials that have ended never change, so each is fetched once."""

from __future__ import annotations

import time
from collections.abc import Container
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study._study_direction import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.integrations.optuna.backend import Position, View
from hpsearch.integrations.optuna.documents import parse_distribution, to_trial


class StudyCache:
    """Trials of one study by number, as of :attr:`position`; its owner sees to threads.

    Attributes:
        known: the distribution that each parameter was first seen with.
    """

    def __init__(self, study_id: int) -> None:
        self.study_id = study_id
        self.position: Position = {"event": 0, "number": 0, "distribution": 0}
        self.known: dict[str, BaseDistribution] = {}
        self.name: str | None = None
        self.directions: list[StudyDirection] | None = None
        self._distributions: dict[Any, tuple[str, BaseDistribution]] = {}
        self._trials: list[FrozenTrial | None] = []
        self._open: set[int] = set()

    def merge(self, view: View, ahead: Container[int]) -> None:
        """Take over what a view of this study says, but of running trials (by id) that are ahead of it here."""
        for trial in self.read(view):
            if trial.state is not TrialState.RUNNING or trial._trial_id not in ahead:
                self.put(trial)
        self.position = {
            "event": view["event"],
            "number": max(view["number"], self.position["number"]),
            "distribution": view["distribution"],
        }

    def saw(self, event: int | None, number: int | None = None) -> None:
        """What this client did itself is known; so the position moves on, if nobody else did anything meanwhile."""
        if number is not None and number == self.position["number"]:
            self.position["number"] += 1
        if event is not None and event == self.position["event"] + 1:
            self.position["event"] = event

    def read(self, view: View) -> list[FrozenTrial]:
        """The trials of a view."""
        for key, name, text in view["distributions"]:
            self._distributions[key] = (name, parse_distribution(text))
            self.known.setdefault(name, self._distributions[key][1])
        return [to_trial(document, self._distributions) for document in view["trials"]]

    def put(self, trial: FrozenTrial) -> None:
        """Keep a trial in place of what was known of it."""
        missing = trial.number + 1 - len(self._trials)
        self._trials += [None] * missing
        self._trials[trial.number] = trial
        if trial.state.is_finished():
            self._open.discard(trial.number)
        else:
            self._open.add(trial.number)

    def at(self, number: int) -> FrozenTrial | None:
        """The trial of a number, if it is known."""
        return self._trials[number] if 0 <= number < len(self._trials) else None

    def select(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Known trials in these states, by number. Those that are open are found without a look at the others."""
        if states is None:
            return [trial for trial in self._trials if trial is not None]
        if any(state in states for state in TrialState if state.is_finished()):
            return [trial for trial in self._trials if trial is not None and trial.state in states]
        found = (self._trials[number] for number in sorted(self._open))
        return [trial for trial in found if trial is not None and trial.state in states]


class Owned:
    """Running trials that this process started, and when the service last confirmed that they run.

    Nobody else is expected to change them, so they are read from memory; but not for longer than a second, lest it be
    missed that the service or another process has ended one.
    """

    SECONDS = 1.0

    def __init__(self) -> None:
        self._confirmed: dict[int, float] = {}

    def confirm(self, trial_id: int) -> None:
        """The service has just said that this trial runs."""
        self._confirmed[trial_id] = time.monotonic()

    def drop(self, trial_id: int) -> None:
        """The trial has ended."""
        self._confirmed.pop(trial_id, None)

    def __contains__(self, trial_id: int) -> bool:
        return trial_id in self._confirmed

    def is_fresh(self, trial_id: int) -> bool:
        """Whether the trial may be read from memory."""
        return time.monotonic() - self._confirmed.get(trial_id, -self.SECONDS) < self.SECONDS
