"""Preprocessing steps: statistics of the training split alone, applied to every split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Transform = Callable[[torch.Tensor], torch.Tensor]
"""Maps samples (n, …) of any split, float32; may work in place."""


def zero_mean(train: torch.Tensor) -> Transform:
    """Subtract the mean sample of the training split, for images the mean image (cs231n, "Data Preprocessing").

    Args:
        train: (n, …) float32, n ≥ 1.
    """
    # Piece by piece, for a copy of the whole split in double precision may not fit beside it.
    pieces = torch.tensor_split(train, 1 + len(train) // 1000)
    total = torch.stack([piece.sum(0, dtype=torch.float64) for piece in pieces]).sum(0)
    mean = (total / len(train)).to(torch.float32)
    return lambda samples: samples.sub_(mean)


STEPS: dict[str, Callable[[torch.Tensor], Transform]] = {"zero_mean": zero_mean}
"""Name in ``objective.preprocess`` → what fits a transform to the training split."""


def preprocess(
    steps: Sequence[str], train: torch.Tensor, validation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both splits after ``steps`` in their order; each step is fitted to the training split as the one before left it.

    Args:
        steps: names in :data:`STEPS`; none leaves the samples at their raw scale.
        train: (n, …) float32; overwritten.
        validation: (m, …) float32; overwritten.
    """
    for step in steps:
        transform = STEPS[step](train)
        train, validation = transform(train), transform(validation)
    return train, validation
