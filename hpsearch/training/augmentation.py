"""Augmentation: random changes of a minibatch of training images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpsearch.errors import DataError
from hpsearch.objective.preprocess import Augment


def check_augment(augment: Augment, shape: Sequence[int]) -> None:
    """Raise DataError if samples of ``shape`` (after preprocessing) are no images and are to be changed as such."""
    if (augment.flip or augment.crop) and len(shape) != 3:
        raise DataError(
            f"augment needs images, but after preprocessing a sample is {shape[0]} numbers in a row: leave out "
            "augment, or pca and whiten"
        )


def augment(samples: torch.Tensor, augment: Augment, generator: torch.Generator) -> torch.Tensor:
    """Mirrored and shifted images, the same for all members of a pack.

    Mirroring left to right has a chance of one half. Cropping pads ``crop`` zeros (of the preprocessed scale) on each
    side and cuts the image out at one of (2 · crop + 1)² places, each as likely (He et al. 2015b, section 4.2).
    How much the generator advances depends on the settings and the batch size alone.

    Args:
        samples: (batch, height, width, channels), not written to; of any shape if ``augment`` changes nothing.
        augment: what to do; see :func:`check_augment`.
        generator: on the CPU, of the data seed and the epoch, so that every epoch differs and each can be repeated.
    """
    if not (augment.flip or augment.crop):
        return samples
    n_samples, height, width, channels = samples.shape
    columns = torch.arange(width).expand(n_samples, width)
    rows = torch.arange(height).expand(n_samples, height)
    if augment.flip:
        mirrored = torch.rand(n_samples, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if augment.crop:
        offsets = torch.randint(2 * augment.crop + 1, (2, n_samples, 1), generator=generator)
        rows, columns = rows + offsets[0], columns + offsets[1]
        samples = torch.nn.functional.pad(samples, (0, 0, *[augment.crop] * 4))
    n_rows, n_columns = samples.shape[1:3]
    # One index per pixel of a flat batch: indexing by three tensors takes more than twice as long.
    lines = torch.arange(n_samples)[:, None] * n_rows + rows
    pixels = lines[:, :, None] * n_columns + columns[:, None, :]
    chosen = samples.reshape(-1, channels).index_select(0, pixels.flatten().to(samples.device))
    return chosen.view(n_samples, height, width, channels)
