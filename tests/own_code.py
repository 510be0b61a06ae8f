"""What tests of the user's own code share: a lease, and a channel that keeps what is said and answers as told."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from hpsearch.trial import Action, Decision, Outcome, Report, Result
from hpsearch.worker.session import LeasedTrial, PreflightTask


def lease(objective: dict[str, Any], **changes: Any) -> LeasedTrial:
    """A trial of a study that minimises ``loss``."""
    fields: dict[str, Any] = {
        "study": "s",
        "stage": "a",
        "trial": 0,
        "attempt": 1,
        "params": {"lr": 0.5},
        "epochs": 3,
        "folds": None,
        "seeds": 1,
        "seed": 7,
        "metric": {"name": "loss", "direction": "minimize"},
        "study_seed": 0,
        "data_seed": 0,
        "lease_seconds": 30.0,
        **changes,
    }
    return LeasedTrial(objective=objective, token=fields.pop("token", f"t{fields['trial']}"), **fields)


class Heard:
    """A channel; ``says`` maps (token, step) to the answer, step None to that to a sign of life."""

    def __init__(self, says: Mapping[tuple[str, int | None], Action] | None = None) -> None:
        self.stop = threading.Event()
        self.reports: list[Report] = []
        self.results: list[Result] = []
        self.released: list[str] = []
        self.logs: dict[str, str] = {}
        self.checks: list[dict[str, Any]] = []
        self._says = dict(says or {})

    def report(self, reports: Sequence[Report]) -> dict[str, Decision]:
        self.reports += [report for report in reports if report.step is not None]
        answers = {}
        for report in reports:
            action = self._says.get((report.token, report.step), Action.CONTINUE)
            answers[report.token] = Decision(report.token, action, f"said {action}")
        return answers

    def flush(self) -> bool:
        return True

    def finish(self, results: Sequence[Result]) -> list[Outcome]:
        self.results += results
        return [Outcome(result.token, accepted=True) for result in results]

    def release(self, tokens: Sequence[str]) -> None:
        self.released += tokens

    def log(self, texts: Mapping[str, str]) -> None:
        self.logs |= texts

    def checked(self, task: PreflightTask, checks: list[dict[str, Any]]) -> None:
        self.checks += checks

    @property
    def result(self) -> Result:
        """The only one."""
        (result,) = self.results
        return result

    @property
    def steps(self) -> list[tuple[int | None, Mapping[str, float]]]:
        """What was reported."""
        return [(report.step, report.metrics) for report in self.reports]
