"""What a study's text says before it is submitted: where it is wrong, line by line, and what it would cost."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from hpsearch.document import parse_yaml
from hpsearch.errors import Fault, InvalidSpec
from hpsearch.search.samplers import check_samplers
from hpsearch.spec import StageSpec, StudySpec, parse_study
from hpsearch_api import models


def validate(text: str) -> models.ValidationView:
    """Check a study's text as submitting it would; nothing is kept."""
    try:
        spec = parse_study(parse_yaml(text))
        check_samplers(spec)
    except InvalidSpec as error:
        faults = [models.LineFaultView(loc=f.loc, msg=f.msg, line=line_of(text, f)) for f in error.faults]
        return models.ValidationView(valid=False, errors=faults)
    stages = [
        models.StageCostView(name=stage.name, n_trials=stage.n_trials, epochs=stage.n_epochs, n_epochs=cost)
        for stage, cost in _costs(spec)
    ]
    return models.ValidationView(
        valid=True,
        errors=[],
        name=spec.name,
        space={name: param.model_dump(mode="json", exclude_none=True) for name, param in spec.space.items()},
        stages=stages,
        n_epochs=sum(stage.n_epochs for stage in stages),
    )


def _costs(spec: StudySpec) -> Iterator[tuple[StageSpec, int]]:
    """Each stage with the epochs of all its trials, folds and repeats, if none is stopped early."""
    for stage in spec.stages:
        yield stage, stage.n_trials * stage.n_epochs * (stage.folds or 1) * stage.n_repeats


def line_of(text: str, fault: Fault) -> int:
    """The line, from 1, that a fault belongs to: of the deepest key of its path that is there."""
    if not fault.loc:
        told = re.search(r"at line (\d+)", fault.msg)
        return int(told.group(1)) if told else 1
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return 1
    line = 0 if node is None else node.start_mark.line
    rest = fault.loc
    while rest and (step := _step(node, rest)) is not None:
        line, node, rest = step
    return line + 1


def _step(node: yaml.Node | None, path: str) -> tuple[int, yaml.Node, str] | None:
    """Line and node of the first part of a path, and what is left of it; a key may have dots of its own."""
    children: list[tuple[str, int, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key.start_mark.line, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(i), child.start_mark.line, child) for i, child in enumerate(node.value)]
    for name, line, child in children:
        if path == name or path.startswith(f"{name}."):
            return line, child, path[len(name) + 1 :]
    return None
