"""Numbers per epoch that say how a training goes, beside its metrics: few, and cheap enough to stay on.

They travel with the metrics of an epoch under names of their own, ``diag/…``, and :mod:`hpsearch.verdicts` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hpsearch.training.layers import Activity
    from hpsearch.training.models import StackedModel
    from hpsearch.training.optimisers import StackedOptimiser

SAMPLES = 100
"""At most so many of a minibatch are looked at: a unit that is silent on 100 samples fires on fewer than 3 % (with 95 %
confidence, the "rule of three"), and a forward pass of them costs a third of one step."""

BINS = 12
"""Of the histogram of a layer's activations at the start."""

MAX_LAYERS = 8
"""Of a deeper net so many layers have histograms, evenly spread from the first to the last hidden one."""


def diagnostics(
    model: StackedModel,
    optimiser: StackedOptimiser,
    inputs: torch.Tensor,
    *,
    initial_loss: Sequence[float] | None = None,
) -> list[dict[str, float]]:
    """What the latest step of an epoch shows, one dict for each of the K rows.

    ``diag/update_ratio``: norm of the latest update over the norm of the weights, the median over the weight tensors
    (of an even number the geometric mean of the middle two); about 1e-3 is healthy (cs231n, "Ratio of weights:
    updates"). ``diag/gradient_norm``: of the latest gradient over all parameters. ``diag/dead``: share of the hidden
    units that give 0 for every sample. ``diag/saturated``: share of the hidden activations in the flat parts of
    their function. The last two are of the worst hidden layer, for a net is as alive as that; absent without one.
    Ratios and dead shares are also given layer by layer, as ``diag/update_ratio/LAYER`` and ``diag/dead/LAYER``.

    Args:
        model: as the epoch left it; its running statistics and random streams are not touched.
        optimiser: of the model, after a step that began with ``measure=True``.
        inputs: a minibatch (batch, …); the first :data:`SAMPLES` of it are used.
        initial_loss: (K,) mean data loss of the first minibatch before any update, given in the first epoch alone:
            ``diag/initial_loss``. The pack adds ``diag/chance_loss``, what it should have been.

    What is not finite (weights that exploded, updates of weights that are all 0) is left out.
    """
    columns: dict[str, list[float]] = {"diag/gradient_norm": optimiser.gradient_norm().tolist()}
    updates = optimiser.updates()
    if updates:
        ratios = torch.stack([ratio for _, ratio in updates])
        columns["diag/update_ratio"] = middle(ratios).tolist()
        names = [f"diag/update_ratio/{name.removesuffix('.weight')}" for name, _ in updates]
        columns |= dict(zip(names, ratios.tolist(), strict=True))
    activities = model.activities(inputs[:SAMPLES])
    if activities:
        dead = torch.stack([a.dead for a in activities])
        columns["diag/dead"] = dead.amax(0).tolist()
        columns |= dict(zip([f"diag/dead/{a.name}" for a in activities], dead.tolist(), strict=True))
        columns["diag/saturated"] = torch.stack([a.saturated for a in activities]).amax(0).tolist()
    if initial_loss is not None:
        columns["diag/initial_loss"] = list(initial_loss)
    rows = [zip(columns, row, strict=True) for row in zip(*columns.values(), strict=True)]
    return [{name: value for name, value in row if math.isfinite(value)} for row in rows]


def middle(values: torch.Tensor) -> torch.Tensor:
    """The median of each column of positive numbers (L, K) → (K,), in logarithms: of (1e-4, 1e-2) it is 1e-3."""
    ordered = values.sort(0).values
    return (ordered[(len(values) - 1) // 2] * ordered[len(values) // 2]).sqrt()


def start_histograms(model: StackedModel, inputs: torch.Tensor) -> list[dict[str, float]]:
    """How the hidden layers are activated before any update, one dict for each of the K rows.

    It is what shows whether an initialisation keeps the signal (cs231n, "Weight initialization"). For each of at most
    :data:`MAX_LAYERS` layers: ``diag/start/LAYER/low`` and ``/high``, the ends of its activations, ``/00`` to ``/11``,
    the shares of them in equally wide bins between these ends, and ``/dead``, as ``diag/dead`` has it. Shares are
    rounded to four digits. A layer whose activations are not finite is left out.

    Args:
        model: that has not been updated; it is not changed.
        inputs: a minibatch (batch, …); the first :data:`SAMPLES` of it are used.
    """
    activities = model.activities(inputs[:SAMPLES])
    rows: list[dict[str, float]] = [{} for _ in range(len(activities[0].dead) if activities else 0)]
    n_shown = min(len(activities), MAX_LAYERS)
    for i in range(n_shown):
        layer = activities[i * (len(activities) - 1) // max(n_shown - 1, 1)]
        for row, columns in zip(rows, _histograms(layer), strict=True):
            row |= {f"diag/start/{layer.name}/{name}": value for name, value in columns.items()}
    return rows


def _histograms(layer: Activity) -> list[dict[str, float]]:
    """``low``, ``high``, ``dead`` and the shares of each row; nothing of a row that is not finite."""
    low, high = layer.sample.aminmax(dim=1)
    finite = (low.isfinite() & high.isfinite()).tolist()
    width = (high - low).clamp_min(torch.finfo(low.dtype).tiny)
    bins = ((layer.sample - low[:, None]) * (BINS / width[:, None])).nan_to_num(0.0).long().clamp_(0, BINS - 1)
    counts = torch.zeros(len(low), BINS, device=low.device).scatter_add_(1, bins, torch.ones_like(layer.sample))
    shares = (counts / layer.sample.shape[1]).tolist()
    ends = torch.stack([low, high, layer.dead], 1).tolist()
    return [
        dict(zip(("low", "high", "dead"), map(_short, end), strict=True))
        | {f"{i:02}": _short(share) for i, share in enumerate(share_row)}
        if is_finite
        else {}
        for end, share_row, is_finite in zip(ends, shares, finite, strict=True)
    ]


def _short(value: float) -> float:
    """Four digits: a histogram is looked at, and kept for every trial."""
    return float(f"{value:.4g}")
