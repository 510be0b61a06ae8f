"""What is wrong with the samplers of a study, and how many trials a stage can create."""

from __future__ import annotations

from dataclasses import replace

from hpsearch.errors import Fault, InvalidSpec
from hpsearch.search.samplers.adaptive import sampler_fault
from hpsearch.search.samplers.grid import grid_fault, grid_points
from hpsearch.space import Space
from hpsearch.spec import StageSpec, StudySpec
from hpsearch.study import NewStage


def check_samplers(spec: StudySpec) -> None:
    """Raise InvalidSpec if a stage's sampler cannot be used by this server, or not with the study's space."""
    faults = []
    for i, stage in enumerate(spec.stages):
        if fault := stage_fault(stage, spec.space):
            faults.append(replace(fault, loc=f"stages.{i}.{fault.loc}"))
    if faults:
        raise InvalidSpec(faults)


def stage_fault(spec: StageSpec, space: Space) -> Fault | None:
    """What is wrong with a stage's sampler, if anything."""
    found = None
    if not spec.sampler.is_own:
        found = sampler_fault(spec.sampler)
    elif spec.sampler.name == "grid" and spec.top is None:
        found = grid_fault(space, spec.sampler, spec.n_trials)
    return None if found is None else Fault(".".join(filter(None, ("sampler", found[0]))), found[1])


def n_planned(stage: NewStage) -> int:
    """How many trials a stage can create: a grid may have fewer points than the stage has trials."""
    spec = stage.spec
    if spec.sampler.name != "grid" or spec.top is not None:
        return stage.n_trials
    points = grid_points(stage.space, spec.sampler, spec.n_trials, seed=0, stage=0, exclude=stage.exclude)
    return min(stage.n_trials, len(points))
