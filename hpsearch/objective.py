"""What a trial evaluates: the ``objective`` of a study, and how a trial's params are set into it."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from hpsearch.document import Document, StorableText, Text
from hpsearch.space import Params

ALIASES = {"lr": "optimizer.lr", "reg": "regularization.l2"}
"""Short names of the parameters that everybody searches."""

Validation = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
"""Size of the validation split: a count of samples, or a share of all."""


class _Data(Document):
    validation: Validation = 0.2
    train: Annotated[int, Field(ge=1)] | None = None
    """At most so many training samples, drawn at random; all by default."""


class DigitsData(_Data):
    """scikit-learn's 1,797 images of handwritten digits, 8 × 8, values 0 to 16, ten classes. Embedded."""

    source: Literal["digits"]


class ParquetData(_Data):
    """A Parquet file, or a folder of them as Hugging Face datasets have it (files named ``train*`` if there are any).

    ``image`` names a column of encoded images (a struct with ``bytes``, or binary; found by its type where not
    given); otherwise ``columns`` (all numeric ones by default) are the features.
    """

    source: Literal["parquet"]
    path: StorableText
    label: Text = "label"
    image: Text | None = None
    columns: list[Text] | None = None


class NpzData(_Data):
    """A NumPy archive with an array of samples ``x`` (n × …) and one of labels ``y`` (n, whole numbers from 0)."""

    source: Literal["npz"]
    path: StorableText
    x: Text = "x"
    y: Text = "y"


class CsvData(_Data):
    """A CSV file with a header; every column but ``label`` is a numeric feature."""

    source: Literal["csv"]
    path: StorableText
    label: Text = "label"


Data = Annotated[DigitsData | ParquetData | NpzData | CsvData, Field(discriminator="source")]


class MlpModel(Document):
    """Linear layers of the widths ``hidden`` with an activation between them; none is a linear classifier."""

    kind: Literal["mlp"]
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=100)] = [50]
    activation: Literal["relu"] = "relu"
    init: Literal["he"] = "he"
    batch_norm: Literal[False] = False
    dropout: Annotated[float, Field(ge=0, le=0)] = 0.0


class SgdOptimizer(Document):
    """v ← momentum · v − lr · gradient; w ← w + v. After every epoch lr ← lr · lr_decay (cs231n, lecture 6)."""

    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0


class Regularization(Document):
    """``l2`` adds ½ · l2 · Σ w² over all weights (not biases) to the loss (cs231n)."""

    l2: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class TrainObjective(Document):
    """Train a built-in model on a classification data set; the loss is softmax cross-entropy."""

    kind: Literal["train"]
    data: Data
    preprocess: Annotated[list[Literal["zero_mean"]], Field(max_length=10)] = ["zero_mean"]
    model: MlpModel = MlpModel(kind="mlp")
    optimizer: SgdOptimizer = SgdOptimizer()
    regularization: Regularization = Regularization()
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 100

    def with_params(self, params: Params) -> TrainObjective:
        """This objective with a trial's params set; raises pydantic's ValidationError if one does not fit."""
        return TrainObjective.model_validate(set_params(self.model_dump(), params))


class ExternalObjective(Document):
    """Whoever leases a trial evaluates it and reports over HTTP; any parameter and any metric."""

    kind: Literal["external"]


Objective = Annotated[TrainObjective | ExternalObjective, Field(discriminator="kind")]

TRAIN_METRICS = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
"""What ``kind: train`` reports after every epoch."""


def set_params(objective: dict[str, Any], params: Params) -> dict[str, Any]:
    """A copy of an objective document with each parameter at its dotted path (or alias)."""
    document = copy.deepcopy(objective)
    for name, value in params.items():
        *parents, leaf = ALIASES.get(name, name).split(".")
        node = document
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return document


def searchable_paths(objective: TrainObjective) -> list[str]:
    """Dotted paths that a space may name, aliases first. Data and the kinds of things are not searched."""
    return [*ALIASES, *_leaves(objective, "")]


def _leaves(node: BaseModel, prefix: str) -> list[str]:
    paths = []
    for name in type(node).model_fields:
        child = getattr(node, name)
        if isinstance(child, BaseModel):
            if name != "data":
                paths += _leaves(child, f"{prefix}{name}.")
        elif name != "kind":
            paths.append(prefix + name)
    return paths
