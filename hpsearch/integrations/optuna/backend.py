"""The calls that Optuna's storage is made of, and the documents that they exchange.

A server answers them over HTTP, a store in this process; :class:`hpsearch.integrations.optuna.storage.BackendStorage`
does not see the difference. Documents are JSON: times are microseconds since 1970, numbers that are not finite are
text, attributes and distributions are the JSON texts that Optuna writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypedDict

from hpsearch.errors import InvalidInput, NotFound, ServerRefused


class StudyDocument(TypedDict):
    """A study: ``directions`` are ``minimize`` or ``maximize``, attributes JSON texts by key."""

    id: int
    name: str
    directions: list[str]
    user: dict[str, str]
    system: dict[str, str]


class Patch(TypedDict, total=False):
    """Changes of one trial, made together or not at all (but for params that do not fit their study).

    Attributes:
        trial: its id.
        params: each ``[name, internal value, distribution]``, in the order in which they were set.
        steps: each ``[step, intermediate value]``.
        user, system: attributes.
        state: Optuna's name of a state.
        values: of the objectives.
        key: names the request, so that it may be repeated when its answer was lost.
    """

    trial: int
    params: list[list[Any]]
    steps: list[list[Any]]
    user: dict[str, str]
    system: dict[str, str]
    state: str
    values: list[float | str]
    key: str


class Outcome(TypedDict):
    """What became of a patch.

    Attributes:
        outcome: ``applied``; ``unchanged``: the trial is running already; ``finished``: it had ended before;
            ``missing``: there is no such trial (any more); ``refused``: the service's own workers train it.
        at: when the state changed.
        unfit: params left out because their study knows them with an incompatible distribution: name → why.
        number: of the trial.
        event: of the study's log, that says so; None if the log does not.
    """

    outcome: str
    at: int | None
    unfit: dict[str, str]
    number: int | None
    event: int | None


class Created(TypedDict):
    """A trial that was made, and the event of the study's log that says so."""

    trial: int
    number: int
    at: int
    event: int | None


TrialDocument = list[Any]
"""``[id, number, state, values, started, ended, params, user, system, steps]``; ``params`` is ``[name, internal value,
key of its distribution, name, …]``, ``steps`` ``[step, value, step, …]``: flat, for a study has many."""


class View(TypedDict):
    """What changed in a study since a :class:`Position`: trials that are new, running, or changed their state.

    Attributes:
        distributions: each ``[key, name of the parameter, text]``; in the order in which they were first used.
        more: whether to ask again from the position reached.
    """

    event: int
    number: int
    distribution: int
    distributions: list[list[Any]]
    trials: list[TrialDocument]
    more: bool


class Position(TypedDict):
    """How far a reader knows a study: the last event seen, how many trials, the last distribution."""

    event: int
    number: int
    distribution: int


Needs = Literal["all", "ended", "waiting"]


class Backend(Protocol):
    """See the module's text. Every call may come from any thread, and is durable when it returns.

    Raises:
        NotFound, or ServerRefused with status 404: no such study or trial.
        InvalidInput, or ServerRefused with status 422: a value that no store keeps.
        Conflict, or ServerRefused with status 409: the name is taken; the study has ended.
    """

    def create_study(self, name: str | None, directions: Sequence[str], key: str) -> StudyDocument:
        """Make a study, with a name of its own if none is given. Repeating it with the same key makes no second one."""
        ...

    def delete_study(self, study_id: int) -> None:
        """Remove a study and all that belongs to it."""
        ...

    def studies(self) -> list[StudyDocument]:
        """Every study, by id."""
        ...

    def study(self, *, study_id: int | None = None, name: str | None = None) -> StudyDocument:
        """One study, by id or name."""
        ...

    def set_attributes(self, study_id: int, kind: str, attributes: dict[str, str]) -> None:
        """Set attributes of a study; ``kind`` is ``user`` or ``system``."""
        ...

    def create_trial(self, study_id: int, template: Patch | None, times: Sequence[int | None], key: str) -> Created:
        """Make a trial, running and empty, or like a template, which started and ended at ``times``.

        Repeating it with the same key makes no second one.
        """
        ...

    def apply(self, patches: Sequence[Patch]) -> list[Outcome]:
        """Change trials."""
        ...

    def sync(
        self, study_id: int, position: Position, patches: Sequence[Patch], needs: Needs
    ) -> tuple[list[Outcome], View]:
        """Change trials, then read what is new in a study.

        ``needs`` ``ended`` leaves out running trials that are known; ``waiting`` asks for nothing but trials that
        wait: then the position stays, and ``more`` says that there are too many and ``all`` is to be asked for.
        """
        ...

    def trial(self, trial_id: int) -> tuple[int, View]:
        """The study of a trial, and a view of nothing but this trial."""
        ...

    def heartbeat(self, trial_id: int) -> None:
        """Note that the process of a trial lives."""
        ...

    def stale_trials(self, study_id: int, grace_seconds: float) -> list[int]:
        """Ids of running trials whose last heartbeat is older than that."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@contextmanager
def optuna_errors() -> Iterator[None]:
    """Raise as Optuna's contract says: KeyError for what is not there, ValueError for what cannot be kept."""
    try:
        yield
    except NotFound as error:
        raise KeyError(str(error)) from error
    except InvalidInput as error:
        raise ValueError(str(error)) from error
    except ServerRefused as error:
        if error.status == 404:
            raise KeyError(str(error)) from error
        if error.status == 422:
            raise ValueError(str(error)) from error
        raise
