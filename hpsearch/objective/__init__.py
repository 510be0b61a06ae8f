"""What a trial evaluates: the ``objective`` of a study, and how a trial's params are set into it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from hpsearch.document import Document
from hpsearch.objective.command import CommandObjective
from hpsearch.objective.data import Data
from hpsearch.objective.models import Loss, MlpModel, Model
from hpsearch.objective.optimizers import Optimizer, Regularization
from hpsearch.objective.params import ALIASES, set_params
from hpsearch.objective.preprocess import Augment, Step
from hpsearch.objective.python import PythonObjective
from hpsearch.objective.task import TaskObjective, is_own
from hpsearch.space import Params

__all__ = [
    "ALIASES",
    "CLASSIFICATION_METRICS",
    "REGRESSION_METRICS",
    "CommandObjective",
    "ExternalObjective",
    "Objective",
    "PythonObjective",
    "TaskObjective",
    "TrainObjective",
    "Trained",
    "is_own",
    "searchable_paths",
    "set_params",
    "train_metrics",
]


class TrainObjective(Document):
    """Train a built-in model on a data set. Every field has a default that works but the data."""

    kind: Literal["train"]
    data: Data
    preprocess: Annotated[list[Step], Field(max_length=10)] = ["zero_mean"]
    augment: Augment = Augment()
    model: Model = MlpModel(kind="mlp")
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    regularization: Regularization = Regularization()
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: matrix products in mixed precision; weights and statistics stay float32."""

    def with_params(self, params: Params) -> TrainObjective:
        """This objective with a trial's params set; raises pydantic's ValidationError if one does not fit."""
        return TrainObjective.model_validate(set_params(self.model_dump(), params))


class ExternalObjective(Document):
    """Whoever leases a trial evaluates it and reports over HTTP; any parameter and any metric."""

    kind: Literal["external"]


Trained = TrainObjective | TaskObjective
"""What we train: with ``optimizer``, ``regularization``, ``loss`` and ``batch_size``."""

Objective = Annotated[
    TrainObjective | TaskObjective | PythonObjective | CommandObjective | ExternalObjective,
    Field(discriminator="kind"),
]

CLASSIFICATION_METRICS = (
    "train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_top5_accuracy", "val_macro_f1",
)  # fmt: skip
REGRESSION_METRICS = ("train_loss", "val_loss", "train_mae", "val_mae", "val_r2")
"""What ``kind: train`` reports after every epoch, by its loss. See :func:`train_metrics`."""


def train_metrics(objective: TrainObjective) -> tuple[str, ...]:
    """The metrics that an objective reports: those of regression for the loss ``mse``, else of classification."""
    return REGRESSION_METRICS if objective.loss.kind == "mse" else CLASSIFICATION_METRICS


def searchable_paths(objective: Trained) -> list[str]:
    """Dotted paths that a space may name, aliases first. Data and the kinds of things are not searched.

    Of a task also any name of which :func:`is_own` is true.
    """
    return [*ALIASES, *_leaves(objective, "")]


NOT_SEARCHED = {"kind", "entrypoint", "params", "validation"}


def _leaves(node: BaseModel, prefix: str) -> list[str]:
    paths = []
    for name in type(node).model_fields:
        child = getattr(node, name)
        if isinstance(child, BaseModel):
            if name != "data":
                paths += _leaves(child, f"{prefix}{name}.")
        elif name not in NOT_SEARCHED or (name == "kind" and prefix == "optimizer."):
            paths.append(prefix + name)
    return paths
