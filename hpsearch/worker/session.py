"""What a worker says to its server, and how it survives the server's absence.

Training waits for the server only where the answer may be that a trial is to stop. All other reports are sent by a
thread beside it, together with whatever was reported while the ones before were on their way; so are those that could
not be sent. Results do wait, however long the server is away, for they are what the work was for, and none is handed
over before its trial's reports. The same thread renews the leases held while an epoch is long.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote

from hpsearch._version import __version__
from hpsearch.errors import ServerError, ServerRefused
from hpsearch.http import Connection, encode
from hpsearch.space import Params
from hpsearch.trial import Action, Decision, Outcome, Report, Result

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0
GRACE_SECONDS = 30.0
"""How long a worker that was told to stop keeps trying to hand over its results."""
WAIT_SECONDS = 20.0
"""How long one request for trials waits at the server."""
TOGETHER_SECONDS = 0.1
"""A report that nobody waits for is sent with what comes so soon after it."""
MOST_TOGETHER = 1000
"""Reports in one request. If more wait to be sent, who reports waits, too."""


@dataclass(frozen=True, slots=True)
class LeasedTrial:
    """A trial to run, as the server hands it out. See the HTTP interface for the fields."""

    study: str
    stage: str
    trial: int
    attempt: int
    token: str
    params: Params
    epochs: int
    folds: int | None
    seeds: int
    seed: int
    objective: dict[str, Any]
    metric: dict[str, str]
    study_seed: int
    data_seed: int
    lease_seconds: float
    resume_from: dict[str, Any] | None = None
    keep_stopped: int = 0
    keep_completed: int = 0
    stops_at: Sequence[int] = ()
    stops_from: int | None = 0


@dataclass(frozen=True, slots=True)
class PreflightTask:
    """A study whose checks are to be run."""

    study: str
    token: str
    objective: dict[str, Any]
    space: dict[str, Any]
    study_seed: int


@dataclass(frozen=True, slots=True)
class Work:
    """What the server has to do: trials, or the checks of a study."""

    leases: list[LeasedTrial]
    preflights: list[PreflightTask]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a session asks for; see :meth:`Session.lease`."""

    capacity: Callable[[], int]
    kinds: list[str]
    study: str | None


class Channel(Protocol):
    """Where what runs trials says how they go; ``stop`` is set when it is to end."""

    stop: threading.Event

    def report(self, reports: Sequence[Report]) -> dict[str, Decision]:
        """Tell metrics; token → what to do."""
        ...

    def flush(self) -> bool:
        """Return when all that was reported has been heard; False if nobody hears it now."""
        ...

    def finish(self, results: Sequence[Result]) -> list[Outcome]:
        """Tell how trials ended."""
        ...

    def release(self, tokens: Sequence[str]) -> None:
        """Give trials back unfinished."""
        ...

    def log(self, texts: Mapping[str, str]) -> None:
        """Tell what trials wrote, by token: the end of it."""
        ...

    def checked(self, task: PreflightTask, checks: list[dict[str, Any]]) -> None:
        """Tell what the checks of a study came to."""
        ...


class Recorder(Protocol):
    """Who else hears how trials go."""

    def reported(self, lease: LeasedTrial, report: Report) -> None:
        """A trial reported metrics of a step."""
        ...

    def ended(self, lease: LeasedTrial, result: Result) -> None:
        """A trial ended."""
        ...

    def holds(self, tokens: Collection[str]) -> None:
        """The worker has these trials, and no others any more."""
        ...


class Session:
    """One worker's conversation with one server.

    Args:
        connection: to the server.
        name: stable identity of the worker.
        info: what it says of itself beside host, pid and version.
        stop: set when the worker is to end.
        recorder: hears what the server hears.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        info: dict[str, Any],
        stop: threading.Event,
        recorder: Recorder | None = None,
    ) -> None:
        self.name = name
        self.stop = stop
        self._connection = connection
        self._recorder = recorder
        self._info = {"host": platform.node(), "pid": os.getpid(), "version": __version__, **info}
        self._id = f"{os.getpid()}-{random.getrandbits(64):016x}"
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._held: dict[str, LeasedTrial] = {}
        self._steps: dict[str, int] = {}
        self._unsent: list[Report] = []
        self._lost: dict[str, Decision] = {}
        self._renewed_at = time.monotonic()
        self._asking_since: float | None = None
        self._warned_of: str | None = None
        self._refused: ServerRefused | None = None
        self._wanted: _Wanted | None = None
        self._next: Work | None = None
        self._has_reported = threading.Event()
        threading.Thread(target=self._keep_in_touch, name="reports", daemon=True).start()

    @property
    def idle_seconds(self) -> float:
        """How long it has asked for something to do; 0 while there is something."""
        since = self._asking_since
        return 0.0 if since is None else time.monotonic() - since

    def lease(self, capacity: Callable[[], int], *, kinds: Sequence[str], study: str | None = None) -> Work:
        """What to do, after waiting for the server and for work as long as it takes; none once told to stop.

        Args:
            capacity: how many trials are wanted; asked again when these end, for what is next comes with the answer.
            kinds: of objectives.
            study: whose trials alone.
        """
        self._wanted = _Wanted(capacity, list(kinds), study)
        self._asking_since = time.monotonic()
        found = self._lease()
        self._asking_since = None
        return found

    def _lease(self) -> Work:
        found, self._next = self._next, None
        while not self.stop.is_set():
            if found is not None:
                return found
            body = {"worker": self.name, **self._wants(), "wait_seconds": WAIT_SECONDS}
            found = self._take(self._unless_stopped(partial(self._call, "/api/v1/leases", body, patient=True)))
        # the answer to a request given up just now may be under way: ask what this worker holds, and give it back
        body = {"worker": self.name, **self._wants(), "kinds": [], "wait_seconds": 0}
        held = self._call("/api/v1/leases", body, patient=False)
        self.release([item["token"] for item in held["leases"]] if held else [])
        return Work([], [])

    def _wants(self) -> dict[str, Any]:
        assert self._wanted is not None
        capacity = self._wanted.capacity()
        asked = {"session": self._id, "capacity": capacity, "kinds": self._wanted.kinds}
        study = {} if self._wanted.study is None else {"study": self._wanted.study}
        return {**asked, **study, "info": {**self._info, "width": capacity}}

    def _take(self, answer: Any) -> Work | None:
        """What the server gives this worker, which holds nothing, to do; None: nothing."""
        self._compare(answer)
        if answer and answer.get("preflights"):
            return Work([], [PreflightTask(**item) for item in answer["preflights"]])
        if not (answer and answer["leases"]):
            return None
        leases = [_leased(item) for item in answer["leases"]]
        with self._lock:
            self._held = {lease.token: lease for lease in leases}
            self._steps.clear()
            self._lost.clear()
            self._renewed_at = time.monotonic()
        if self._recorder is not None:
            self._recorder.holds([lease.token for lease in leases])
        return Work(leases, [])

    def _compare(self, answer: Any) -> None:
        """Warn once of a server of another version."""
        other = (answer or {}).get("version", __version__)
        if other not in (__version__, self._warned_of):
            self._warned_of = other
            log.warning(
                "the server is hpsearch %s and this worker %s: install the same version on both, for one may not "
                "understand the other",
                other,
                __version__,
            )

    def _unless_stopped(self, ask: Callable[[], Any]) -> Any:
        """What ``ask`` returns or raises; None as soon as the worker is told to stop, however long it takes."""
        done = threading.Event()
        answers: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                answers.append(ask())
            except BaseException as error:
                errors.append(error)
            done.set()

        threading.Thread(target=run, name="lease", daemon=True).start()
        while not done.wait(0.1):
            if self.stop.is_set():
                return None
        if errors:
            raise errors[0]
        return answers[0]

    def report(self, reports: Sequence[Report]) -> dict[str, Decision]:
        """Send metrics; token → decision. Where the server is away, or nothing may stop: continue, sent later.

        Raises:
            ServerRefused: the server does not take them, or those of a call before.
        """
        with self._lock:
            self._unsent += reports
            held = dict(self._held)
            n_unsent = len(self._unsent)
            asks = [self._may_stop(report) for report in reports]
        if self._recorder is not None:
            for report in reports:
                if report.step is not None and report.token in held:
                    self._recorder.reported(held[report.token], report)
        if any(asks) or n_unsent > MOST_TOGETHER:
            self.flush()
        else:
            self._has_reported.set()
            self._raise_refused()
        with self._lock:
            return {r.token: self._lost.get(r.token, Decision(r.token, Action.CONTINUE)) for r in reports}

    def finish(self, results: Sequence[Result]) -> list[Outcome]:
        """Hand over results, trying until the server has them; after being told to stop only for a while longer."""
        if not results:
            return []
        tokens = {r.token for r in results}
        reports = self._unsent_of(tokens)
        body: dict[str, Any] = {
            "worker": self.name,
            "results": [
                {
                    "token": r.token,
                    "state": r.state,
                    "value": None if r.value is None else encode(r.value),
                    "reason": None if r.reason is None else r.reason[:2000],
                }
                for r in results
            ],
        }
        if reports:
            body["reports"] = [_told(r) for r in reports]
        if self._wanted is not None and not self.stop.is_set() and self._are_all(tokens):
            body["next"] = self._wants()
        answer = self._call("/api/v1/leases/finish", body, patient=True)
        self._record_ends(results)
        self._let_go([r.token for r in results])
        if answer is None:
            log.warning(
                "the server is away: %d results could not be handed over and will be trained again", len(results)
            )
            return []
        if answer.get("next"):
            self._next = self._take(answer["next"])
        outcomes = [Outcome(o["token"], o["accepted"], o["reason"]) for o in answer["outcomes"]]
        for outcome in outcomes:
            if not outcome.accepted:
                log.warning("a result was refused: %s", outcome.reason)
        return outcomes

    def log(self, texts: Mapping[str, str]) -> None:
        """Hand over what trials wrote, by token; a server that is away misses it."""
        body = {"worker": self.name, "logs": [{"token": token, "text": text} for token, text in texts.items()]}
        self._call("/api/v1/leases/log", body, patient=False)

    def checked(self, task: PreflightTask, checks: list[dict[str, Any]]) -> None:
        """Hand over the checks of a study."""
        for check in checks:
            check["numbers"] = {name: encode(value) for name, value in check["numbers"].items()}
        body = {"worker": self.name, "token": task.token, "checks": checks}
        self._call(f"/api/v1/studies/{quote(task.study, safe='')}/preflight", body, patient=True)

    def release(self, tokens: Sequence[str]) -> None:
        """Give trials back unfinished; if the server does not hear it, their leases expire."""
        if tokens:
            self.flush()
            self._call("/api/v1/leases/release", {"worker": self.name, "tokens": list(tokens)}, patient=False)
            self._let_go(tokens)

    def _record_ends(self, results: Sequence[Result]) -> None:
        if self._recorder is not None:
            with self._lock:
                held = dict(self._held)
            for result in results:
                if result.token in held:
                    self._recorder.ended(held[result.token], result)

    def _let_go(self, tokens: Sequence[str]) -> None:
        with self._lock:
            for token in tokens:
                self._held.pop(token, None)

    def flush(self) -> bool:
        """Send what has not been sent; False if the server is away.

        One thread sends at a time, and who comes meanwhile waits: what the first could not send has to be sent yet.

        Raises:
            ServerRefused: the server does not take what was reported, by this call or by one before.
        """
        with self._sending:
            is_heard = self._send_all()
        if is_heard:
            self._raise_refused()
        return is_heard

    def _send_all(self) -> bool:
        while reports := self._next_to_send():
            if not self._send(reports):
                return False
        return True

    def _unsent_of(self, tokens: Collection[str]) -> list[Report]:
        """What was not sent of some trials, to be sent with their results; none is on its way then."""
        with self._sending:
            self._raise_refused()
            with self._lock:
                mine = [r for r in self._unsent if r.token in tokens]
                self._unsent = [r for r in self._unsent if r.token not in tokens]
        return [r for r in mine if r.step is not None]

    def _are_all(self, tokens: Collection[str]) -> bool:
        """Whether nothing is held but these."""
        with self._lock:
            return all(token in tokens or self._is_lost(token) for token in self._held)

    def _next_to_send(self) -> list[Report]:
        with self._lock:
            reports, self._unsent = self._unsent[:MOST_TOGETHER], self._unsent[MOST_TOGETHER:]
        return reports

    def _raise_refused(self) -> None:
        """Say what the thread beside was told."""
        with self._lock:
            error, self._refused = self._refused, None
        if error is not None:
            raise error

    def _may_stop(self, report: Report) -> bool:
        """Whether the answer may be to stop, or nothing but an answer is wanted."""
        lease, step = self._held.get(report.token), report.step
        if lease is None or step is None:
            return True
        before = self._steps.get(report.token, 0)
        self._steps[report.token] = max(before, step)
        may_always = lease.stops_from is not None and lease.stops_from <= step < lease.epochs
        return may_always or any(before < rung <= step for rung in lease.stops_at)

    def _send(self, reports: list[Report]) -> bool:
        body = {
            "worker": self.name,
            "reports": [_told(r) for r in reports],
        }
        answer = self._call("/api/v1/leases/report", body, patient=False)
        with self._lock:
            if answer is None:
                self._unsent = [r for r in reports if r.step is not None] + self._unsent
                return False
            self._renewed_at = time.monotonic()
            for item in answer["decisions"]:
                if item["action"] != Action.CONTINUE and item["token"] in self._held:
                    self._lost[item["token"]] = Decision(item["token"], Action(item["action"]), item["reason"])
        return True

    def _keep_in_touch(self) -> None:
        """Send what nobody waits for, and renew what is held when nothing was reported for a third of a lease."""
        while True:
            is_told = self._has_reported.wait(0.5)
            self._has_reported.clear()
            with self._lock:
                third = min((lease.lease_seconds for lease in self._held.values()), default=0.0) / 3
                due = bool(self._held) and time.monotonic() - self._renewed_at >= third
                if due:
                    self._renewed_at = time.monotonic()
                    self._unsent += [Report(token) for token in self._held if not self._is_lost(token)]
            if is_told:
                time.sleep(TOGETHER_SECONDS)
            if is_told or due:
                with self._sending:
                    try:
                        self._send_all()
                    except ServerRefused as error:  # said to who reports next, or hands over results
                        self._refused = error

    def _is_lost(self, token: str) -> bool:
        """Whether the lease is gone; that of a trial that is to stop is held until its result is handed over."""
        return token in self._lost and self._lost[token].action is Action.ABANDON

    def _call(self, path: str, body: dict[str, Any], *, patient: bool) -> Any:
        """The server's answer; None if it is away (at once, or where patient only after being told to stop)."""
        pause, told_at = FIRST_PAUSE, None
        while True:
            try:
                return self._connection.call("POST", path, body=body, timeout_seconds=WAIT_SECONDS + 10)
            except ServerError as error:
                if isinstance(error, ServerRefused) and error.status < 500:
                    raise
                if not patient:
                    return None
                if self.stop.is_set():
                    told_at = told_at or time.monotonic()
                    if path == "/api/v1/leases" or time.monotonic() - told_at > GRACE_SECONDS:
                        return None
                log.warning("%s; trying again in %.1f s", error, pause)
                self.stop.wait(pause) if not self.stop.is_set() else time.sleep(min(pause, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE) * random.uniform(0.8, 1.2)


def _told(report: Report) -> dict[str, Any]:
    metrics = {name: encode(value) for name, value in report.metrics.items()}
    return {"token": report.token, "step": report.step, "metrics": metrics}


def _leased(item: dict[str, Any]) -> LeasedTrial:
    return LeasedTrial(**{name: item[name] for name in LeasedTrial.__dataclass_fields__ if name in item})
