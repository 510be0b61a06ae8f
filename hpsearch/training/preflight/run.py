"""All checks of a study, in order."""

from __future__ import annotations

import torch

from hpsearch.objective import TrainObjective
from hpsearch.space import Space
from hpsearch.training.data import Dataset
from hpsearch.training.preflight import data, learning, start
from hpsearch.training.preflight.check import Check
from hpsearch.training.preflight.setup import set_up


def preflight(objective: TrainObjective, space: Space, *, study_seed: int, dataset: Dataset) -> list[Check]:
    """Check a study's pipeline; seconds on one core.

    Checks that could say nothing after one that failed (no features, an infinite loss) are left out.

    Args:
        objective: of the study, without params.
        space: of its first stage. What a check does not vary is set to the middle of its range, on its own scale.
        study_seed: of the study; what is drawn follows from it alone.
        dataset: loaded for the objective with that seed.

    Raises:
        DataError: the preprocessing or the model does not fit the data.
    """
    setup = set_up(objective, space, study_seed=study_seed, dataset=dataset)
    prepared = dataset.prepared(setup.objective.preprocess)
    checks = [data.finite(prepared), data.columns(prepared), data.duplicates(prepared)]
    if setup.is_classifier:
        checks.append(data.classes(prepared, setup.train.n_outputs))
    if any(check.status == "fail" for check in checks):
        return checks
    with torch.no_grad():
        checks += [start.initial_loss(setup), start.activations(setup)]
        if any(check.status == "fail" for check in checks):
            return checks
        rates = learning.ladder(setup)
        overfit, rate = learning.overfit(setup, rates.best)
        return [
            *checks,
            start.gradients(setup),
            start.regularisation(setup),
            start.symmetry(setup, rates.best),
            learning.lr_range(rates),
            overfit,
            learning.labels(setup, rate),
        ]
