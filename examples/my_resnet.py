"""A net of one's own: a residual CNN on 1,797 images of handwritten digits. See my_resnet.yaml."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn


class Block(nn.Module):
    """x + what two convolutions make of it (He et al. 2015, "Deep Residual Learning")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (batch, channels, height, width) → the same shape."""
        return torch.relu(x + self.layers(x))


class Digits:
    """What hpsearch needs to know: the data, and the model for a trial's params."""

    def data(self) -> tuple[Any, Any]:
        """Images (n, 1, 8, 8) in [0, 1], and their digits."""
        digits = load_digits()
        return digits.images[:, None] / 16, digits.target

    def model(self, params: dict[str, Any]) -> nn.Module:
        """A convolution, ``blocks`` residual blocks at half the resolution, the mean over the image, scores."""
        channels = params["channels"]
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            *(Block(channels) for _ in range(params["blocks"])),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(params["dropout"]),
            nn.Linear(4 * channels, 10),
        )
