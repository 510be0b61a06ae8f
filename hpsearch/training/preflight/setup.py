"""What the checks of one preflight share: the study in the middle of its space, and some of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hpsearch.objective import ALIASES, TrainObjective
from hpsearch.search.scale import from_unit
from hpsearch.space import CategoricalParam, Param, Params, Space
from hpsearch.training.data import Dataset
from hpsearch.training.losses import theoretical_initial_loss
from hpsearch.training.preflight.probe import Bench, plain
from hpsearch.training.streams import Purpose, torch_stream

SAMPLES = 2000
"""So many training and validation samples are enough to see a fault, and few enough to be through in seconds."""


IMAGE_BATCH = 32
"""Samples per minibatch of a probe of a convolutional net: what a probe shows takes steps more than samples."""


@dataclass(frozen=True)
class Setup:
    """A study to check.

    Attributes:
        objective: with every searched parameter in the middle of its range.
        space: its searched parameters by full path (``optimizer.lr``, not ``lr``).
        train, validation: up to :data:`SAMPLES` of either split, preprocessed, in random order.
        chance: the loss of equal scores, or for ``mse`` the mean square of the targets.
    """

    objective: TrainObjective
    space: dict[str, Param]
    train: Bench
    validation: Bench
    chance: float

    def plain(self, params: Params) -> TrainObjective:
        """The objective with ``params``, plain as probes want it, and without any regularisation not in ``params``."""
        none: Params = {f"regularization.{name}": 0.0 for name in ("l2", "l1", "weight_decay")}
        return plain(self.objective, {**none, **params})

    def ends(self, path: str) -> tuple[float, float]:
        """The least and greatest value that a numeric field may take in the study; equal if it is fixed."""
        return ends(self.objective, self.space, path)

    @property
    def batch_size(self) -> int:
        """Of probes: the study's, but small for images, which take a thousand times as long as rows."""
        size = self.objective.batch_size
        return min(size, IMAGE_BATCH) if self.on_images else size

    @property
    def on_images(self) -> bool:
        """Whether the model is one of convolutions."""
        return self.objective.model.kind in ("cnn", "resnet")

    @property
    def is_classifier(self) -> bool:
        """Whether targets are classes."""
        return self.objective.loss.kind != "mse"


def ends(objective: object, by_path: Mapping[str, Param], path: str) -> tuple[float, float]:
    """The least and greatest value that a numeric field of an objective may take; see :meth:`Setup.ends`."""
    param = by_path.get(path)
    if isinstance(param, CategoricalParam):
        numbers = [c for c in param.choices if isinstance(c, int | float) and not isinstance(c, bool)]
        return min(numbers), max(numbers)
    if param is not None:
        return param.low, param.high
    node = objective
    for part in path.split("."):
        node = getattr(node, part)
    assert isinstance(node, int | float)
    return node, node


def set_up(objective: TrainObjective, space: Space, *, study_seed: int, dataset: Dataset) -> Setup:
    """Draw the samples and set the middle of every range; see :func:`hpsearch.training.preflight.preflight`."""
    by_path = {ALIASES.get(name, name): param for name, param in space.items()}
    middle = objective.with_params({path: from_unit(param, 0.5) for path, param in by_path.items()})
    prepared = dataset.prepared(middle.preprocess)
    generator = torch_stream(study_seed, Purpose.PREFLIGHT)

    def bench(samples: torch.Tensor, targets: torch.Tensor) -> Bench:
        index = torch.randperm(len(samples), generator=generator)[:SAMPLES].to(samples.device)
        return Bench(samples[index], targets[index], dataset.n_outputs, prepared.rms, study_seed)

    train = bench(prepared.train.samples, prepared.train.labels)
    validation = bench(prepared.validation.samples, prepared.validation.labels)
    chance = theoretical_initial_loss(middle.loss, dataset.n_outputs)
    if chance is None:
        chance = max(float(train.targets.double().square().mean()), 1e-12)
    return Setup(middle, by_path, train, validation, chance)
