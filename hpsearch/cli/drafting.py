"""A commented study for data as they were found: a small net, wide ranges, and coarse, fine and confirm stages."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpsearch.cli.looking import Seen

SMALL = 1000
"""Below so many samples a split of a fifth is too few to compare trials on, and each is trained on five folds."""
MOST_VALIDATION = 5000
"""More tell hardly more: the standard error of an accuracy of 50 % is 0.7 % here."""
CNN_FROM = 12
"""Images of fewer pixels a side have nothing for a convolution to find."""
CNN_NUMBERS = 10_000_000
"""A CNN over more numbers than this (samples × pixels × channels) wants a GPU."""
COARSE_STEPS = 100
"""Minibatches of a coarse trial: what the lecture's "few epochs" come to on the smallest data."""
UNBALANCED = 4
"""Where the largest class has so many times the smallest, accuracy rewards who says the largest."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A study to be written.

    Attributes:
        name: of the study.
        seen: its data.
        gpu: whether it is for a machine with a GPU.
    """

    name: str
    seen: Seen
    gpu: bool

    @property
    def n_samples(self) -> int:
        """Samples that are split here."""
        return len(self.seen.y)

    @property
    def is_small(self) -> bool:
        """Whether trials are trained on folds."""
        return self.n_samples < SMALL

    @property
    def validation(self) -> float | int:
        """Size of the validation split."""
        return 0.2 if self.n_samples <= MOST_VALIDATION / 0.2 else MOST_VALIDATION

    @property
    def holds_test(self) -> bool:
        """Whether a tenth is set apart for ``hpsearch test``: not where the data bring a test split, or are few."""
        return not (self.is_small or self.seen.n_test)

    @property
    def batch_size(self) -> int:
        """As small as leaves some dozens of steps in an epoch."""
        return 20 if self.n_samples < 500 else 50 if self.n_samples < 5000 else 100

    @property
    def epochs(self) -> tuple[int, int, int]:
        """Of the coarse, the fine and the confirm stage: 1, 5 and 10 as in the lecture, times what few samples need."""
        n_train = self.n_samples * (1 - (0.1 if self.holds_test else 0))
        n_train -= self.validation if self.validation >= 1 else self.validation * self.n_samples
        coarse = min(20, math.ceil(COARSE_STEPS / math.ceil(n_train / self.batch_size)))
        return coarse, 5 * coarse, 10 * coarse

    @property
    def lr_decay(self) -> float:
        """The lecture's 0.95 after an epoch, spread over as many as the coarse stage has."""
        return float(f"{0.95 ** (1 / self.epochs[0]):.3g}")

    @property
    def rates(self) -> tuple[float, float]:
        """Of lr: where standardised samples and scores near 1 put useful ones; numbers of a wide spread want less."""
        spread = 1.0 if self.seen.n_classes else max(1.0, float(self.seen.y.std()))
        low = 10.0 ** (-5 - round(math.log10(spread)))
        return low, 1e5 * low

    @property
    def metric(self) -> tuple[str, str]:
        """What trials are compared by, and why."""
        if not self.seen.n_classes:
            return "val_r2", "share of the variance that is explained; also val_mae, val_loss (minimize)"
        smallest, largest = self.seen.class_sizes
        if largest > UNBALANCED * smallest:
            return "val_macro_f1", f"the mean over classes, for they hold {smallest:,} to {largest:,} samples"
        return "val_accuracy", "also val_loss (minimize), val_macro_f1"

    @property
    def wants_cnn(self) -> bool:
        """Whether the samples are images large enough, and few enough for this machine."""
        shape = self.seen.shape
        large = self.seen.is_images and min(shape[:2]) >= CNN_FROM
        return large and (self.gpu or self.n_samples * math.prod(shape) <= CNN_NUMBERS)


def study_name(place: str) -> str:
    """A name for the study of data at a path: what a name may hold, or ``study``."""
    stem = "digits" if place == "digits" else Path(place).resolve().stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:90] or "study"


def described(seen: Seen) -> str:
    """The data in a few words: ``150 samples of 4 features, 3 classes of 50 samples each``."""
    n = len(seen.y)
    shape = " × ".join(map(str, seen.shape))
    what = f"images of {shape}" if seen.is_images else f"samples of {shape} features"
    tests = f", {seen.n_test:,} more set apart as test" if seen.n_test else ""
    if not seen.n_classes:
        return f"{n:,} {what}, a number to predict between {seen.y.min():.4g} and {seen.y.max():.4g}{tests}"
    smallest, largest = seen.class_sizes
    sizes = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    found = len(np.unique(seen.y))
    return f"{n:,} {what}, {found} classes of {sizes} samples{' each' if smallest == largest else ''}{tests}"


def stages_in_words(draft: Draft) -> str:
    """What the study will train."""
    coarse, fine, confirm = draft.epochs
    folds = " (each on 5 folds)" if draft.is_small else ""
    return (
        f"60 trials of {coarse} epoch{'s' if coarse > 1 else ''}{folds}, then 60 of {fine} where the first did best, "
        f"then the best 5 with 3 fresh seeds and {confirm} epochs"
    )


def study_text(draft: Draft, place: str) -> str:
    """The study as commented YAML."""
    seen = draft.seen
    metric, why = draft.metric
    coarse, fine, confirm = draft.epochs
    low, high = (f"{end:.1e}" for end in draft.rates)
    folds = ", folds: 5" if draft.is_small else ""
    notes = "".join(f"# Mind: {note}.\n" for note in seen.notes)
    return f"""\
# {place}: {described(seen)}.
{notes}# Every key is explained in docs/study.md. Lines that begin with "# " and a key are worth a try.
name: {_yaml(draft.name)}
objective:
  kind: train
  data:
{_data(draft)}
  preprocess: [standardize]  # each {"pixel" if seen.is_images else "feature"}: mean 0, standard deviation 1
{_model(draft)}
{_loss(seen)}  optimizer: {{kind: sgd, momentum: 0.9, lr_decay: {draft.lr_decay}}}
  # optimizer: {{kind: adam, lr_decay: {draft.lr_decay}}}
  batch_size: {draft.batch_size}
metric: {{name: {metric}, direction: maximize}}  # {why}
# Wide, for a search begins coarse; where the best lies at a border a flag says so, and the search goes past it.
space:
  lr: {{type: float, low: {low}, high: {high}, log: true}}
  reg: {{type: float, low: 1.0e-6, high: 1.0, log: true}}  # L2 strength
{_more_space(draft)}
stages:
  # Few epochs tell rates that cannot work from those that may.
  - {{name: coarse, trials: 60, epochs: {coarse}{folds}, on_border: extend}}
  # More epochs, over ranges narrowed to where the first stage did best.
  - {{name: fine, trials: 60, epochs: {fine}{folds}}}
  # The best of many is partly lucky: the best five once more, with fresh seeds.
  - {{name: confirm, top: 5, epochs: {confirm}, seeds: 3{folds}}}
seed: 0
"""


def _data(draft: Draft) -> str:
    lines = [f"{key}: {_yaml(value)}" for key, value in draft.seen.data.items()]
    if "path" in draft.seen.data:
        lines = [f"{line}  # as seen from where workers start" if line.startswith("path:") else line for line in lines]
    compared = "every fold in turn, where stages say so" if draft.is_small else "every class in its share"
    lines.append(f"validation: {draft.validation}  # trials are compared on these: {compared}")
    if draft.holds_test:
        lines.append("test: 0.1  # set apart first, and read once, for the winner: hpsearch test")
    return "\n".join(f"    {line}" for line in lines)


def _model(draft: Draft) -> str:
    hidden = 100 if draft.seen.is_images or math.prod(draft.seen.shape) > 100 else 50
    mlp = f"  model: {{kind: mlp, hidden: [{hidden}], activation: relu, init: he}}"
    if not draft.seen.is_images or min(draft.seen.shape[:2]) < CNN_FROM:
        return mlp
    cnn = "  model: {kind: cnn, channels: [16, 32], batch_norm: true, activation: relu, init: he}"
    if draft.wants_cnn:
        return f"{cnn}\n  # {mlp.strip()}"
    return f"{mlp}\n  # {cnn.strip()}  # better, and many times slower without a GPU"


def _loss(seen: Seen) -> str:
    return "" if seen.n_classes else "  loss: {kind: mse}  # the label is a number\n"


def _more_space(draft: Draft) -> str:
    lines = ["model.dropout: {type: float, low: 0.0, high: 0.6}"]
    if not draft.wants_cnn:
        lines.append("model.hidden: {type: categorical, choices: [[50], [100], [200], [100, 100]]}")
    return "\n".join(f"  # {line}" for line in lines)


def _yaml(value: Any) -> str:
    """A value on one line; JSON is YAML."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*", value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False)


_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "null", "y", "n"))
"""Which YAML does not take for text."""
