"""The documents of the routes for Optuna; see :mod:`hpsearch.integrations.optuna.backend`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hpsearch.document import Document, StorableText
from hpsearch.space import MAX_INT
from hpsearch_api.models import Items, Number, View

Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Step = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Micros = Annotated[int, Field(ge=-(2**60), lt=2**60, description="microseconds since 1970")]
Key = Annotated[StorableText, Field(min_length=8, max_length=100, description="names the request: it may be repeated")]
State = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"]
Attributes = Annotated[dict[StorableText, StorableText], Field(description="JSON texts by key")]


class NewStudy(Document):
    """A study to be made; without a name it gets one."""

    name: StorableText | None = None
    directions: Annotated[list[Literal["minimize", "maximize"]], Field(min_length=1, max_length=100)]
    key: Key


class StudyBody(View):
    """A study as Optuna sees it; attributes are JSON texts."""

    id: int
    name: str
    directions: list[str]
    user: dict[str, str]
    system: dict[str, str]


class Studies(Items[StudyBody]):
    """Studies by id."""


class AttributesBody(Document):
    """Attributes of a study, set over those of the same keys."""

    user: Attributes = {}
    system: Attributes = {}


class Template(Document):
    """What a trial holds: params as ``[name, internal value, distribution]``, steps as ``[step, value]``."""

    params: list[tuple[StorableText, Number, StorableText]] = []
    steps: list[tuple[Step, Number]] = []
    user: Attributes = {}
    system: Attributes = {}
    state: State = "RUNNING"
    values: list[Number] | None = None


class NewTrial(Document):
    """A trial to be made; without a template running and empty. ``times``: when the template started and ended."""

    template: Template | None = None
    times: tuple[Micros | None, Micros | None] = (None, None)
    key: Key


class CreatedView(View):
    """The trial that was made."""

    trial: int
    number: int
    at: int
    event: int | None


class PatchBody(Document):
    """Changes of one trial, as in :class:`Template`; what is left out stays."""

    trial: Id
    params: list[tuple[StorableText, Number, StorableText]] = []
    steps: list[tuple[Step, Number]] = []
    user: Attributes = {}
    system: Attributes = {}
    state: State | None = None
    values: list[Number] | None = None
    key: Key | None = None


class Patches(Document):
    """Changes of trials, each of another one."""

    patches: Annotated[list[PatchBody], Field(max_length=10_000)] = []


class OutcomeBody(View):
    """What became of a patch; ``unfit``: params left out because of their distribution, and why."""

    outcome: Literal["applied", "unchanged", "finished", "missing", "refused"]
    at: int | None
    unfit: dict[str, str]
    number: int | None
    event: int | None


class OutcomesBody(View):
    """One outcome per patch, in order."""

    outcomes: list[OutcomeBody]


class PositionBody(Document):
    """How far the caller knows a study."""

    event: Annotated[int, Field(ge=0, le=MAX_INT)] = 0
    number: Annotated[int, Field(ge=0, le=MAX_INT)] = 0
    distribution: Annotated[int, Field(ge=0, le=MAX_INT)] = 0


class SyncRequest(Patches):
    """Changes to make, then what to read: `ended` leaves out known running trials, `waiting` all but waiting ones."""

    position: PositionBody = PositionBody()
    needs: Literal["all", "ended", "waiting"] = "all"


class ViewBody(View):
    """What changed in a study since a position; ``more``: ask again from where this one ends."""

    event: int
    number: int
    distribution: int
    distributions: list[list[Any]]
    trials: list[list[Any]]
    more: bool


class SyncAnswer(OutcomesBody):
    """Outcomes, and what is new."""

    view: ViewBody


class TrialAnswer(View):
    """The study of a trial, and a view of this trial alone."""

    study: int
    view: ViewBody


class StaleTrials(View):
    """Ids of trials."""

    trials: list[int]


def plain(body: Document) -> Any:
    """What is said in a body, as plain values."""
    return body.model_dump(exclude_none=True)
