"""What samples go through: ``objective.preprocess`` and ``objective.augment``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from hpsearch.document import Document


class PcaStep(Document):
    """Rotate onto the principal axes of the training split, and keep the first ``components`` or as many as hold the
    share ``variance`` of the variance; all of them by default. Samples become flat.
    """

    kind: Literal["pca"]
    components: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    variance: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> PcaStep:
        if self.components is not None and self.variance is not None:
            raise PydanticCustomError("study", "{text}", {"text": "pca takes components or variance, not both"})
        return self


class WhitenStep(Document):
    """As ``pca``, and divide each axis by √(its variance + ``epsilon`` · the largest variance)."""

    kind: Literal["whiten"]
    epsilon: Annotated[float, Field(ge=0, le=1)] = 1e-5
    components: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


PlainStep = Literal["zero_mean", "per_channel_mean", "standardize", "min_max", "pca", "whiten"]
"""``zero_mean``: subtract the mean sample; ``per_channel_mean``: one mean per channel; ``standardize``: mean 0 and
standard deviation 1 per feature; ``min_max``: each feature to [0, 1]. ``pca`` and ``whiten`` with their defaults."""

Step = PlainStep | Annotated[PcaStep | WhitenStep, Field(discriminator="kind")]


class Augment(Document):
    """Random changes of training images, fresh in every epoch and the same for all trials of a pack."""

    flip: bool = False
    """Mirror left to right with a chance of one half."""
    crop: Annotated[int, Field(ge=0, le=64)] = 0
    """Pad by so many pixels of the preprocessed zero on each side and cut the image out at a random place."""
