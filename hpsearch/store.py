"""What the coordinator asks of a store. Memory, SQLite and PostgreSQL keep the same contract.

``hpsearch.testing.StoreConformance`` is the contract as tests: a new store subclasses it and passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from hpsearch.space import Params, Value
from hpsearch.spec import StudySpec
from hpsearch.study import Acknowledgement, Border, Event, NewStage, Preflight, Stage, Study, StudyState, Worker
from hpsearch.trial import (
    Attempt,
    Climbs,
    Decision,
    Demand,
    Ending,
    Judge,
    Lease,
    Outcome,
    Report,
    RungEntry,
    RungPlace,
    StepMetrics,
    Trial,
    TrialState,
    as_told,
)

T = TypeVar("T")

SORT_KEYS = ("number", "value", "state", "step", "stage", "started_at", "ended_at")
"""What trials can be sorted by, besides ``params.NAME``; a leading ``-`` reverses."""


@dataclass(frozen=True, slots=True)
class TrialQuery:
    """Which trials, in which order, which page.

    Attributes:
        states: only these; empty means all.
        verdict: only trials that have this verdict, by its name.
        within: only trials whose ``value`` or ``params.NAME`` lies between two numbers, both included, for each given.
        among: only trials whose ``params.NAME`` is one of some choices, for each given.
        every: only trials whose number is a multiple of this, at least 1: a sample that is the same each time.
        sort: one of :data:`SORT_KEYS` or ``params.NAME``, with ``-`` in front for falling order. Trials without
            the key come last either way; ties go by number.
        limit: page size, at least 1.
        after: the ``next`` cursor of the page before.
    """

    stage: str | None = None
    states: tuple[TrialState, ...] = ()
    verdict: str | None = None
    within: tuple[tuple[str, float, float], ...] = ()
    among: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    every: int = 1
    sort: str = "number"
    limit: int = 100
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items, and the cursor that continues after them (None at the end)."""

    items: list[T]
    next: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """Trials by columns, as an export of a million of them wants them.

    Attributes:
        state, verdicts: as text; the names of verdicts with blanks between.
        started_at, ended_at: microseconds since 1970.
    """

    number: Sequence[int]
    stage: Sequence[str]
    state: Sequence[str]
    value: Sequence[float | None]
    step: Sequence[int]
    reason: Sequence[str | None]
    n_attempts: Sequence[int]
    worker: Sequence[str | None]
    started_at: Sequence[int | None]
    ended_at: Sequence[int | None]
    verdicts: Sequence[str]
    params: Sequence[Params]


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """Who asks for leases.

    Attributes:
        name: stable identity; what this name holds it gets back when it asks again.
        session: changes when the worker's process is started anew; leases of an earlier session died with their
            process and are counted as lost at once. None: not told, everything held is given back.
        info: host, device, pid, version: shown, never interpreted.
    """

    name: str
    session: str | None
    info: dict[str, Any]


def as_kinds(kinds: Iterable[str] | None) -> tuple[str, ...] | None:
    """Kinds of objectives in one order, so that who asks for the same asks alike; None: all."""
    return None if kinds is None else tuple(sorted(set(kinds)))


@dataclass(frozen=True, slots=True)
class Asking:
    """What a worker asks for.

    Attributes:
        capacity: at most so many trials, those that it holds already included.
        study: only of this one; None: of any but ``external`` ones.
        kinds: of objectives; None: of any.
        share: it gets new ones only while it holds fewer than so many; None: than its capacity.
    """

    worker: WorkerHello
    capacity: int
    study: str | None = None
    kinds: tuple[str, ...] | None = None
    share: int | None = None

    def room(self, n_held: int) -> int:
        """How many new trials it may get beside those that it gets back."""
        most = self.capacity if self.share is None else min(self.capacity, self.share)
        return max(most - n_held, 0)


class Logs(Protocol):
    """The end of what trials of users' own code wrote, one text for each. Threads as in :class:`Store`."""

    def keep(self, texts: Mapping[str, str]) -> None:
        """Keep texts by the tokens of leases, in place of what was there; a lease that is lost changes nothing."""
        ...

    def of_trial(self, study_id: int, number: int) -> str | None:
        """The text of a trial, None if it wrote nothing. Raises NotFound if there is no such trial."""
        ...


class Store(Protocol):
    """Where studies live.

    Threads: every method may be called from any thread at any time. Each method is one transaction: it happens
    whole or not at all, and when it returns the change is durable. Methods that change something append to the
    event log of each study they touch, in the same transaction, so that the log never has a gap or a lie.

    Time: ``now`` (aware, UTC) is the caller's clock, a server's; the clock of a worker is never asked.

    Unknown ids: a study id that is not there (any more) raises :class:`~hpsearch.errors.NotFound`.

    Events (kind → data): ``study`` → ``{state, reason}``; ``stage`` → ``{stage, index, state, n_trials}``;
    ``trial`` → ``{number, stage, state, value, step, params, reason}`` on every change of a trial's state
    (not on its creation in state queued); ``flag`` → ``{stage, parameter, side, note}``; ``test`` → the one
    reading of the test split; ``thinned`` → ``{keep_every, n_removed, trials}``, metrics that were removed.
    """

    is_local: bool
    """Whether it is in this process: then a small write takes no longer than it takes to wake a thread."""

    @property
    def logs(self) -> Logs:
        """What trials wrote."""
        ...

    # -- studies ----------------------------------------------------------------------------------------------

    def create_study(
        self,
        spec: StudySpec,
        stage: NewStage,
        *,
        now: datetime,
        idempotency_key: str | None = None,
        preflight: bool = False,
    ) -> tuple[Study, bool]:
        """Create a study with its first stage, or find the one that the same request created before.

        It is running, or with ``preflight`` in state preflight, its checks waiting for a worker.

        Returns:
            the study, and whether this call created it. A study of the same name and an equal spec, or one
            created with the same key and an equal spec, is returned as it is.

        Raises:
            Conflict: the name (or the key) is taken by another spec.
        """
        ...

    def study(self, name: str) -> Study:
        """One study by name. Raises NotFound."""
        ...

    def studies(self, *, limit: int, after: str | None = None) -> Page[Study]:
        """Studies, newest first."""
        ...

    def set_state(self, study_id: int, state: StudyState, *, reason: str | None = None, now: datetime) -> Study:
        """Move a study to a state; moving it to the state it has changes nothing.

        A final state ends what is open: queued and running trials become cancelled, their attempts too, and the
        running stage becomes completed (if the study did) or cancelled. Running after preflight overrides the checks.

        Raises:
            Conflict: the study has ended (a final state is never left), or is to pause in preflight.
        """
        ...

    def delete_study(self, study_id: int) -> None:
        """Remove a study and all that belongs to it."""
        ...

    # -- preflight --------------------------------------------------------------------------------------------

    def preflight(self, study_id: int) -> Preflight:
        """The checks of a study and where they stand."""
        ...

    def claim_preflight(
        self, worker: str, *, kinds: Iterable[str], now: datetime, ttl: timedelta
    ) -> tuple[Study, str] | None:
        """Give the checks of one study to a worker: the oldest whose checks wait, or whose worker's time is over
        (or who asks again: it cannot be running them).

        Only studies of these kinds of objective.

        Returns:
            the study and the token to finish with, or None if there is nothing to check.
        """
        ...

    def finish_preflight(
        self, study_id: int, token: str, checks: Sequence[dict[str, Any]], *, failure: str | None, now: datetime
    ) -> bool:
        """Keep the checks; start the study if none failed, else hold it with ``failure`` as its reason.

        Returns:
            False, changing nothing, if the token gives no right (any more). Repeating it is harmless.
        """
        ...

    def n_checks_waiting(self, *, kinds: Iterable[str] | None = None, now: datetime) -> int:
        """How many studies have checks that :meth:`claim_preflight` would give to a worker; of all kinds for None."""
        ...

    # -- stages -----------------------------------------------------------------------------------------------

    def stages(self, study_id: int) -> list[Stage]:
        """All stages of a study by index, with live counts. Empty if there is no such study."""
        ...

    def open_stage(self, study_id: int, index: int, stage: NewStage, *, now: datetime) -> bool:
        """Open stage ``index``, the next, and complete the running one; its open trials are cancelled.

        A completed study runs again.

        Returns:
            False, changing nothing, if there is a stage ``index`` already, or the study was cancelled or failed:
            however many servers try, a stage opens once. A paused study's stages do open.

        Raises:
            Conflict: the study has a stage of that name.
        """
        ...

    def stages_with_room(
        self, *, study: str | None = None, kinds: Iterable[str] | None = None
    ) -> list[tuple[Study, Stage]]:
        """Running stages of running studies that have planned trials not yet created, each with its study.

        Stage and study are of one moment. Studies are chosen as :meth:`lease` chooses them, and come in the same order.
        """
        ...

    def demand(
        self, worker: str, *, since: datetime, study: str | None = None, kinds: Iterable[str] | None = None
    ) -> Demand:
        """What there is to be leased, and who else wants it.

        Studies are chosen as :meth:`lease` chooses them; a worker waits if it was heard of since and holds nothing.
        """
        ...

    def stages_to_settle(self, *, max_failures: int) -> list[tuple[Study, Stage]]:
        """Running stages of running or paused studies that are done (:attr:`Stage.is_done`), watched, or hopeless.

        Hopeless: at least ``max_failures`` trials failed and none ended in another way. Open-ended stages never are.
        """
        ...

    # -- flags ------------------------------------------------------------------------------------------------

    def acknowledge(self, study_id: int, border: Border, note: str | None, *, now: datetime) -> None:
        """Note that a user has seen what is said of a border; ``note`` None takes that back (event ``flag``)."""
        ...

    def acknowledgements(self, study_id: int) -> dict[Border, Acknowledgement]:
        """What users noted of the borders of a study's stages."""
        ...

    # -- trials -----------------------------------------------------------------------------------------------

    def add_trials(
        self,
        stage_id: int,
        first_number: int,
        params: Sequence[Params],
        *,
        now: datetime,
        behind: Sequence[int] | None = None,
    ) -> bool:
        """Create queued trials numbered from ``first_number``.

        ``behind`` says how many epochs each has behind it, where it goes on from a trial of the parent stage (None: 0).
        They count as trained by it only if the first step that it reports is one of them: then it was trained anew.

        Returns:
            False, changing nothing, unless ``first_number`` is the study's next number, the stage is running and
            it has room for all of them (then somebody else was faster: read again and retry).
        """
        ...

    def add_finished(
        self, stage_id: int, trials: Sequence[tuple[Params, TrialState, float | None]], *, now: datetime
    ) -> list[int]:
        """Add trials that were evaluated elsewhere; they take no room of the stage. Returns their numbers."""
        ...

    def trials(self, study_id: int, query: TrialQuery) -> Page[Trial]:
        """A page of trials. Raises InvalidInput for an unknown sort key or a cursor of another query."""
        ...

    def table(self, study_id: int, query: TrialQuery) -> tuple[Table, str | None]:
        """A page of trials as :meth:`trials` gives it, by columns, and the cursor that continues after them."""
        ...

    def n_by_step(self, study_id: int, stage: str, state: TrialState) -> dict[int, int]:
        """Last step → how many trials of a stage that are in a state have it."""
        ...

    def trial(self, study_id: int, number: int) -> Trial:
        """One trial. Raises NotFound."""
        ...

    def attempts(self, study_id: int, number: int) -> list[Attempt]:
        """Every try at a trial, first to last."""
        ...

    def metrics(self, study_id: int, numbers: Sequence[int]) -> list[StepMetrics]:
        """All that these trials reported, by trial and step."""
        ...

    # -- leases -----------------------------------------------------------------------------------------------

    def lease(self, asked: Sequence[Asking], *, now: datetime, ttl: timedelta, max_lost: int = 3) -> list[list[Lease]]:
        """Give workers trials, one after the other: first what each holds already (renewed), then queued ones.

        Only running studies give out trials, the one with the fewest running trials first, then the oldest; within
        a study lower stages and numbers first. What an earlier session of a worker held is lost (see
        :class:`WorkerHello`) and queued again, or failed if ``max_lost`` attempts were lost, before anything is given
        out. A queued trial is given to one worker only.

        Returns:
            the leases of each who asked.
        """
        ...

    def report(
        self,
        workers: Set[str],
        reports: Sequence[Report],
        climbs: Sequence[Climbs] = (),
        *,
        now: datetime,
        ttl: timedelta,
    ) -> tuple[list[Decision], list[list[RungEntry]]]:
        """Keep metrics and what they say of rungs, as :meth:`record_rungs` does; renew leases; hear of the workers.

        The decision is ``continue`` while the lease holds (with its place), else ``abandon`` with the reason; a
        report without a lease changes nothing. A step reported twice keeps the later metrics; several reports of one
        token in one call are taken in order. The first step that a later attempt reports drops the steps behind it:
        they belong to a curve that was given up. A lease past its expiry that nobody has reaped is renewed.

        Returns:
            the decisions, and what :meth:`record_rungs` returns for each of ``climbs``.
        """
        ...

    def finish(self, calls: Sequence[Ending], judge: Judge = as_told, *, now: datetime) -> list[Outcome]:
        """End trials, in order, as ``judge`` says of each whose lease holds.

        What they report at last is kept first, with the results or not at all; none of it is recorded at a rung.

        Accepted if the lease holds, or if this very attempt has finished its trial before (then nothing changes).
        Otherwise refused with a reason, and nothing changes but that the attempt's history says that a late result
        came. A completed trial without a value gets the study's metric of its last step; if there is none it
        becomes failed, and if the value is not finite, diverged, either with a reason.
        """
        ...

    def release(self, worker: str, tokens: Sequence[str], *, now: datetime) -> list[Outcome]:
        """Give trials back unfinished: they are queued again, and the attempt does not count against them."""
        ...

    def reap(self, *, now: datetime, max_lost: int) -> list[int]:
        """Take back expired leases: each attempt is lost, its trial queued again, or failed if ``max_lost`` were.

        Returns:
            the ids of the studies touched.
        """
        ...

    # -- rungs ------------------------------------------------------------------------------------------------

    def record_rungs(self, stage_id: int, values: Mapping[RungPlace, float | None], *, after: int) -> list[RungEntry]:
        """Keep what trials had at rungs of a stage; the first value of a trial at a rung counts.

        Returns:
            every entry of the stage with ``seq > after``, by ``seq``, these included: nothing with a lower one
            appears later. Empty for a stage that is not there.
        """
        ...

    def let_on(
        self, stage_id: int, passed: Iterable[RungPlace], *, promoted: Mapping[RungPlace, str], now: datetime
    ) -> list[int]:
        """Let trials past their rungs: those ``passed`` are running and go on, those ``promoted`` had been stopped.

        A pruned trial that is promoted is queued again, with the text given as its reason, while its stage is running
        and its study has not ended. One that is queued or running still is left as it is, its entry too. In all other
        cases the entry alone is marked. An entry that is marked already is left alone: of several servers one promotes.

        Returns:
            the numbers of the trials queued again, rising.
        """
        ...

    # -- the test split ---------------------------------------------------------------------------------------

    def test_reading(self, study_id: int) -> dict[str, Any] | None:
        """What the one reading of the test split came to, None before it."""
        ...

    def log_test(self, study_id: int, reading: dict[str, Any], *, now: datetime) -> dict[str, Any]:
        """Log the one reading of the test split (event ``test``); a later one changes nothing.

        Returns:
            the reading that counts: the first.
        """
        ...

    # -- the log, the workers, the store itself ---------------------------------------------------------------

    def events(self, study_id: int, *, after: int, limit: int) -> list[Event]:
        """Events with ``seq > after``, in order."""
        ...

    def last_event(self, study_id: int) -> int:
        """``seq`` of the newest event, 0 if there is none."""
        ...

    def workers(self) -> list[Worker]:
        """Every worker that asked for leases, the last seen first."""
        ...

    def check(self) -> None:
        """Return if the store answers. Raises StoreError."""
        ...

    def close(self) -> None:
        """Let go of connections and locks. The store is not used afterwards."""
        ...


def all_trials(store: Store, study_id: int, query: TrialQuery) -> list[Trial]:
    """Every trial that a query matches, page after page."""
    trials: list[Trial] = []
    after: str | None = None
    while True:
        page = store.trials(study_id, replace(query, limit=5000, after=after))
        trials += page.items
        after = page.next
        if after is None:
            return trials
