"""Bring your own net: ``kind: task``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpsearch.document import Document, Text
from hpsearch.objective.data import Validation
from hpsearch.objective.models import Loss
from hpsearch.objective.optimizers import Optimizer, Regularization
from hpsearch.objective.own import ENTRYPOINT, FixedParams
from hpsearch.objective.params import ALIASES, set_params
from hpsearch.space import Params


class TaskObjective(Document):
    """Train a net of the user's own on data of the user's own, with our optimisers. See docs/study.md for the class."""

    kind: Literal["task"]
    entrypoint: Annotated[Text, Field(pattern=ENTRYPOINT)]
    """``module:Class``, as Python imports it from the worker's folder."""
    params: FixedParams = {}
    """What ``model(params)`` is given beside the trial's own parameters."""
    validation: Validation = 0.2
    """Where the task does not split its data itself."""
    loss: Loss = Loss()
    """Where the task has none of its own."""
    optimizer: Optimizer = Optimizer()
    regularization: Regularization = Regularization()
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 100

    def with_params(self, params: Params) -> TaskObjective:
        """This objective with a trial's params set; raises pydantic's ValidationError if one does not fit.

        Those that are the task's own go to ``params``.
        """
        document = set_params(self.model_dump(), {n: v for n, v in params.items() if not is_own(n)})
        document["params"] |= {n: v for n, v in params.items() if is_own(n)}
        return TaskObjective.model_validate(document)


def is_own(name: str) -> bool:
    """Whether a parameter is the task's own, and not a field of the objective (or a misspelt one)."""
    return name not in ALIASES and name.split(".", maxsplit=1)[0] not in TaskObjective.model_fields
