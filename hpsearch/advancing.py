"""What may follow a stage: the next of the plan, one past a border, or one of the user's own.

Everything here is a function of what the stages' trials came to; the coordinator opens what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import ValidationError

from hpsearch.document import Document, faults_of
from hpsearch.errors import Conflict, Fault, InvalidInput, InvalidSpec
from hpsearch.search.borders import Flag, FlagVerdict
from hpsearch.search.ranking import first_params
from hpsearch.search.refining import difference, narrow
from hpsearch.search.samplers import n_planned
from hpsearch.search.scale import to_unit
from hpsearch.search.unlearned import Move
from hpsearch.space import CategoricalParam, FloatParam, Param, Space
from hpsearch.spec import StageSpec, StudySpec
from hpsearch.study import NewStage, Stage
from hpsearch.trial import Trial

ACTED_ON = ("likely", "strong")
"""Levels of a flag at which a stage past the border is proposed, or opened."""
MIN_EXTENSION = 8
"""A stage past a border trains at least so many trials."""
_NAMES = {"lr": ("lr", "optimizer.lr"), "reg": ("reg", "regularization.l2", "regularization.weight_decay")}
_SUFFIXES = {("lr", "low"): "lower", ("lr", "high"): "higher", ("reg", "low"): "weaker"}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A stage that may be opened by one call.

    Attributes:
        kind: ``next`` of the plan, or ``extension`` past the borders that are flagged, or past where nothing learns.
        reason: why, in a sentence.
    """

    kind: Literal["next", "extension"]
    stage: NewStage
    reason: str

    @property
    def name(self) -> str:
        """The stage's."""
        return self.stage.spec.name

    @property
    def n_epochs(self) -> int:
        """What it costs: epochs over all of its trials, folds and repeats."""
        spec = self.stage.spec
        return self.stage.n_trials * spec.n_epochs * (spec.folds or 1) * spec.n_repeats


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a stage tells of its child; read when it is asked for, and no more of it than that takes.

    Attributes:
        judged: its trials, and those that it inherits; a sample of a huge stage.
        from_best: the completed ones of all of them, best first.
    """

    judged: Callable[[], Sequence[Trial]]
    from_best: Callable[[], Iterable[Trial]]


class OwnStage(Document):
    """A stage of the user's own, or changes to a proposed one: whatever is given replaces what would be."""

    proposal: str | None = None
    parent: str | None = None
    space: dict[str, Any] | None = None
    name: str | None = None
    trials: int | None = None
    epochs: int | None = None
    top: int | None = None
    seeds: int | None = None
    folds: int | None = None
    sampler: Any = None
    early_stopping: Any = None
    on_border: str | None = None
    max_extensions: int | None = None
    resume: bool | None = None

    @property
    def of_stage(self) -> dict[str, Any]:
        """What it says of the stage's spec."""
        return self.model_dump(exclude={"proposal", "parent", "space"}, exclude_none=True)

    @property
    def says_nothing(self) -> bool:
        """Whether it leaves everything to the proposal."""
        return not self.model_dump(exclude_none=True)


def inherits(stage: Stage, parent: Stage) -> bool:
    """Whether values of the two stages can be compared: both sample, and train for as long, in the same way."""
    ours, theirs = stage.spec, parent.spec
    sampled = ours.top is None and theirs.top is None
    return sampled and (ours.n_epochs, ours.folds, ours.n_repeats) == (theirs.n_epochs, theirs.folds, theirs.n_repeats)


def first_stage(spec: StudySpec) -> NewStage:
    """The stage that a study begins with."""
    return _watched(spec, NewStage(spec.stages[0], spec.space, spec.stages[0].n_trials))


def next_stage(spec: StudySpec, stages: Sequence[Stage], stage: Stage, evidence: Evidence) -> NewStage | None:
    """The stage that the plan has after this one, None after the last. ``evidence`` is what this one tells."""
    if stage.plan + 1 >= len(spec.stages):
        return None
    following = spec.stages[stage.plan + 1]
    following = following.model_copy(update={"name": _free(following.name, stages)})
    return _child(spec, stage, following, evidence, plan=stage.plan + 1)


def _child(
    spec: StudySpec,
    parent: Stage,
    following: StageSpec,
    evidence: Evidence,
    *,
    plan: int,
    space: Space | None = None,
) -> NewStage:
    n_trials = following.n_trials
    if following.top is not None:
        space = space or parent.space
        n_trials = len(first_params(evidence.from_best(), following.top)) * following.n_seeds
    elif space is None:
        narrows = following.refine == "narrow"
        space = narrow(parent.space, evidence.judged(), spec.metric) if narrows else dict(parent.space)
    changed = difference(parent.space, space)
    return _watched(spec, NewStage(following, space, n_trials, parent=parent.name, difference=changed, plan=plan))


def to_act_on(flags: Iterable[Flag]) -> list[Flag]:
    """Those of a stage's flags that propose a stage past their borders."""
    return [f for f in flags if f.level in ACTED_ON and f.verdict == FlagVerdict.WIDEN]


def extension(
    spec: StudySpec, stages: Sequence[Stage], stage: Stage, flags: Sequence[Flag], *, limited: bool
) -> Proposal | None:
    """The stage past the flagged borders of this one, None if there is no such border.

    Its ranges are those that the flags propose; it draws only where its parent has not, as densely as its parent did,
    and inherits the parent's trials that lie inside. With ``limited`` the stage's ``max_extensions`` counts, as it
    does for stages that open by themselves.
    """
    borders = ", ".join(f"the {f.side} border of {f.parameter} (p = {f.p_value:.2g})" for f in flags)
    why = f"the best trials of {stage.name} lie at {borders}"
    return _beyond(spec, stages, stage, _past(stage.space, flags), suffix="wider", why=why, limited=limited)


def elsewhere(spec: StudySpec, stages: Sequence[Stage], stage: Stage, move: Move, *, limited: bool) -> Proposal | None:
    """The stage beside this one, where next to nothing was learned.

    Its range of lr, or of reg, is as wide as this one's and begins where that ends. None if that is not searched on a
    log scale. ``limited`` as for :func:`extension`.
    """
    name = next((n for n in _NAMES[move.what] if n in stage.space), None)
    param = stage.space[name] if name is not None else None
    if name is None or not isinstance(param, FloatParam) or not param.log:
        return None
    if move.side == "high":
        low, high = param.high, min(param.high * (param.high / param.low), param.hard_high or math.inf)
    else:
        low, high = max(param.low * (param.low / param.high), param.hard_low or 0.0), param.low
    if not 0 < low < high < math.inf:
        return None
    space: Space = {**stage.space, name: param.model_copy(update={"low": low, "high": high})}
    suffix = _SUFFIXES[move.what, move.side]
    return _beyond(spec, stages, stage, space, suffix=suffix, why=move.reason, limited=limited)


def _beyond(
    spec: StudySpec, stages: Sequence[Stage], stage: Stage, space: Space, *, suffix: str, why: str, limited: bool
) -> Proposal | None:
    planned = spec.stages[stage.plan]
    done = any(s.parent == stage.name and s.extension > 0 for s in stages)
    if done or stage.spec.top is not None or (limited and stage.extension >= planned.max_extensions):
        return None
    if space == stage.space:
        return None
    number = stage.extension + 1
    base = f"{planned.name}-{suffix}" + ("" if number == 1 else f"-{number}")
    share = _new_share(stage.space, space)
    n_trials = min(max(math.ceil(share * planned.n_trials), MIN_EXTENSION), planned.n_trials)
    update = {"name": _free(base, stages), "trials": n_trials, "advance": "auto"}
    new = NewStage(
        stage.spec.model_copy(update=update),
        space,
        n_trials,
        parent=stage.name,
        difference=difference(stage.space, space),
        plan=stage.plan,
        extension=number,
        exclude=stage.space,
        reason=why,
    )
    return Proposal("extension", _watched(spec, new), why)


def _past(space: Space, flags: Sequence[Flag]) -> Space:
    changed: Space = {}
    for name, param in space.items():
        for flag in flags:
            if flag.parameter == name and flag.proposed is not None and not isinstance(param, CategoricalParam):
                ends = param.model_dump() | flag.proposed
                param = type(param).model_validate(ends)  # noqa: PLW2901 - both borders of one may be flagged
        changed[name] = param
    return changed


def _new_share(parent: Space, child: Space) -> float:
    """How much of the child's volume lies outside the parent's, in units of the parent's volume."""
    whole = shared = 1.0
    for name, param in child.items():
        low, high = _ends(parent[name], param)
        whole *= high - low
        shared *= max(min(high, 1.0) - max(low, 0.0), 0.0)
    return whole - shared


def _ends(scale: Param, param: Param) -> tuple[float, float]:
    """Where a range lies on the scale of another, whose range is from 0 to 1."""
    if isinstance(param, CategoricalParam) or isinstance(scale, CategoricalParam):
        return 0.0, 1.0
    return to_unit(scale, param.low), to_unit(scale, param.high)


def own_stage(spec: StudySpec, stages: Sequence[Stage], stage: Stage, asked: OwnStage, evidence: Evidence) -> NewStage:
    """A child of a stage as the user wants it.

    Raises:
        InvalidSpec: what it says is no stage of this study.
    """
    of_plan = spec.stages[stage.plan].model_dump(exclude={"top", "trials", "seeds", "name", "resume"})
    free = _free(f"{spec.stages[stage.plan].name}-own", stages)
    document = {**of_plan, "name": free, **asked.of_stage}
    if "trials" not in document and "top" not in document:
        document["trials"] = spec.stages[stage.plan].n_trials
    following, space = _check(spec, _changed_space(stage.space, asked.space or {}), document)
    return _child(spec, stage, following, evidence, plan=stage.plan, space=space if asked.space else None)


def edited(spec: StudySpec, proposal: Proposal, asked: OwnStage) -> NewStage:
    """A proposed stage with the user's changes. Raises InvalidSpec."""
    new = proposal.stage
    if not asked.of_stage and asked.space is None:
        return new
    document = {**new.spec.model_dump(exclude_none=True), **asked.of_stage}
    checked, space = _check(spec, _changed_space(new.space, asked.space or {}), document)
    n_trials = checked.n_trials if asked.trials or asked.top or asked.seeds else new.n_trials
    return replace(new, spec=checked, space=space, n_trials=n_trials)


def _changed_space(space: Space, changes: dict[str, Any]) -> dict[str, Any]:
    """The space as a document, with changes of some parameters; what a change does not say stays."""
    faults = []
    merged: dict[str, Any] = {name: param.model_dump(exclude_none=True) for name, param in space.items()}
    for name, change in changes.items():
        if name not in space:
            faults.append(Fault(f"space.{name}", f"the space has no parameter {name!r}; it has {', '.join(space)}"))
        elif not isinstance(change, dict):
            faults.append(Fault(f"space.{name}", "give what changes, such as {low: 1e-5, high: 1e-2}"))
        elif change.get("type", space[name].type) != space[name].type:
            faults.append(Fault(f"space.{name}.type", f"{name} is of type {space[name].type}: a stage keeps the type"))
        else:
            merged[name] |= change
    if faults:
        raise InvalidSpec(faults)
    return merged


def _check(spec: StudySpec, space: dict[str, Any], stage: dict[str, Any]) -> tuple[StageSpec, Space]:
    """The stage and its space, if a study may have them: the checks of a study are those of its parts."""
    before = spec.stages[0].model_copy(update={"name": "the-parent-of-this"}).model_dump(exclude_none=True)
    document = spec.model_dump(exclude={"space", "stages"}, exclude_none=True)
    try:
        document |= {"space": space, "stages": [before, stage]}
        checked = StudySpec.model_validate(document)
    except ValidationError as error:
        faults = [Fault(f.loc.removeprefix("stages.1."), f.msg) for f in faults_of(error, document)]
        raise InvalidSpec(faults) from None
    return checked.stages[1], checked.space


def find(proposals: Sequence[Proposal], name: str | None) -> Proposal:
    """The proposal of a name, or the only one.

    Raises:
        Conflict: there is none.
        InvalidInput: no proposal of this name, or several and no name.
    """
    if not proposals:
        raise Conflict("no stage is proposed now: give one of your own, with name, trials and epochs")
    names = ", ".join(p.name for p in proposals)
    if name is None and len(proposals) > 1:
        raise InvalidInput(f"several stages are proposed: name one of {names} as proposal")
    for proposal in proposals:
        if name in (None, proposal.name):
            return proposal
    raise InvalidInput(f"no stage {name!r} is proposed; there is {names}")


def _free(name: str, stages: Sequence[Stage]) -> str:
    """The name, with a number behind it if a stage has it."""
    taken = {stage.name for stage in stages}
    numbered = (f"{name}-{n}" for n in range(2, len(taken) + 3))
    return name if name not in taken else next(n for n in numbered if n not in taken)


def _watched(spec: StudySpec, stage: NewStage) -> NewStage:
    """A confirm stage may be settled early, and any of a study that may end itself; a grid ends with its points."""
    return replace(stage, n_trials=n_planned(stage), watched=not spec.stop.is_never or stage.spec.top is not None)
