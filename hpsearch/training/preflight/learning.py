"""Checks that train a little: which learning rates do anything, and whether the model can fit at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hpsearch.training.preflight.check import Check
from hpsearch.training.preflight.probe import Bench, Trained, scores, train
from hpsearch.training.preflight.setup import Setup

LADDER_STEPS = 50
"""Minibatches per learning rate of the ladder, half an epoch of 10,000 samples: enough for a fit rate to lose half
of what it will, too few for one a thousand times lower to move the loss by 5 %."""

INSIDE = 7
"""Rates of the ladder within the study's range, both ends included."""

OUTSIDE = 4
"""Rates beyond either end, a factor of ten apart."""

IMAGE_RATES = (5, 2)
"""The same for convolutional nets, which are slow: enough to see that the best rate lies outside (:data:`FAR`)."""

EVERYWHERE = (-9, 4)
"""Powers of ten, the last not included: rates of all optimisers on inputs from 0.01 to 1,000 lie within."""

TINY = 1e-12
"""A rate of zero has no logarithm, and trains nothing."""

BARELY = 0.05
"""Share of the loss at chance below which it has barely moved; as for the verdict ``lr_too_low``."""

EXPLODED = 1.5
"""A late loss over so many times its start has exploded."""

FAR = 10.0
"""The best rate of a short run may lie above the best of a long one; beyond the range by more than this it tells."""

OVERFIT_SAMPLES, OVERFIT_STEPS = 20, 400

OVERFIT_DIVISORS = (1, 3, 10, 100, 1000)

FITTED = 0.01
"""A regression has fitted its samples when this share of its starting loss is left."""

LABEL_STEPS = 300

FITTED_SAMPLES = 500
"""Of the training split, on which ``labels`` asks what was learned: enough for a limit of :data:`LEARNED`."""

SIGMAS = 3.0
"""A validation accuracy so many standard errors over chance is no chance (one in 700)."""

LEARNED = 0.2
"""Training accuracy over chance from which on a model has fitted something that validation should show."""


@dataclass(frozen=True)
class Ladder:
    """What :data:`LADDER_STEPS` minibatches do at each of some learning rates.

    Attributes:
        rates: ascending.
        losses: late loss of each; non-finite or large where it exploded.
        start: the loss without training.
        low, high: ends of the study's range; equal if the rate is fixed.
        steps: minibatches per rate.
        little: share of the start below which the loss has barely moved.
    """

    rates: list[float]
    losses: list[float]
    start: float
    low: float
    high: float
    steps: int = LADDER_STEPS
    little: float = BARELY

    def exploded(self, k: int) -> bool:
        """Whether the k-th rate threw the loss up."""
        return not self.losses[k] <= EXPLODED * self.start

    def barely(self, k: int) -> bool:
        """Whether the k-th rate hardly moved the loss."""
        return not self.exploded(k) and self.losses[k] > (1 - self.little) * self.start

    def useful(self) -> list[float]:
        """The rates at which the loss fell."""
        return [rate for k, rate in enumerate(self.rates) if self.losses[k] <= (1 - self.little) * self.start]

    @property
    def inside(self) -> list[int]:
        """Positions of the rates within the study's range."""
        return [k for k, rate in enumerate(self.rates) if self.low <= rate <= self.high]

    @property
    def best(self) -> float:
        """The rate of the lowest finite loss, or the range's own middle where none is."""
        finite = [k for k, loss in enumerate(self.losses) if math.isfinite(loss)]
        if not finite:
            return math.sqrt(self.low * self.high)
        return self.rates[min(finite, key=self.losses.__getitem__)]


def ladder(setup: Setup) -> Ladder:
    """Try learning rates in and around the study's range, with the least regularisation of the study.

    Where none of them lowers the loss, all decades of :data:`EVERYWHERE` are tried as well.
    """
    inside, outside = IMAGE_RATES if setup.on_images else (INSIDE, OUTSIDE)
    low, high = setup.ends("optimizer.lr")
    return climb(low, high, lambda rates, *ends: _try(setup, rates, *ends), inside=inside, outside=outside)


def climb(
    low: float,
    high: float,
    attempt: Callable[[list[float], float, float], Ladder],
    *,
    inside: int = INSIDE,
    outside: int = OUTSIDE,
    everywhere: bool = True,
) -> Ladder:
    """The ladder of a range: ``attempt`` tries rates; those of :data:`EVERYWHERE` as well, where none is useful."""
    low, high = max(low, high * 1e-6, TINY), max(high, TINY)
    inner = [low] if low == high else _geometric(low, high, inside)
    outer = [[low / 10**k, high * 10**k] for k in range(1, outside + 1)]
    found = attempt(sorted({*inner, *(rate for pair in outer for rate in pair)}), low, high)
    if found.useful() or not everywhere:
        return found
    return attempt(sorted({*inner, *(10.0**k for k in range(*EVERYWHERE))}), low, high)


def _try(setup: Setup, rates: list[float], low: float, high: float) -> Ladder:
    reg, _ = setup.ends("regularization.l2")
    # The first trains as good as nothing: what the loss of the same minibatches is without training.
    objectives = [setup.plain({"lr": rate, "reg": reg}) for rate in (TINY, *rates)]
    trained = train(setup.train, objectives, steps=LADDER_STEPS, batch_size=setup.batch_size)
    start, *late = trained.late().tolist()
    n_steps = len(trained.losses)
    return Ladder(rates, late, start, low, high, n_steps, BARELY * n_steps / LADDER_STEPS)


def _geometric(low: float, high: float, n: int) -> list[float]:
    inner = [low * (high / low) ** (k / (n - 1)) for k in range(1, n - 1)]
    return [low, *inner, high]


def lr_range(seen: Ladder) -> Check:
    """Whether the range of the learning rate brackets the rates that do something (cs231n, "Hyperparameter search")."""
    name = "lr_range"
    useful = seen.useful()
    numbers = {f"loss_at_{rate:.3g}": loss for rate, loss in zip(seen.rates, seen.losses, strict=True)}
    numbers["initial_loss"] = seen.start
    if not useful:
        message = (
            f"No learning rate from {seen.rates[0]:.3g} to {seen.rates[-1]:.3g} lowers the loss in {seen.steps} "
            "minibatches: check the data, the preprocessing and model.init."
        )
        return Check(name, "warn", message, numbers)
    numbers |= {"best": seen.best, "useful_low": useful[0], "useful_high": useful[-1]}
    lr = f"from {seen.low:.3g} to {seen.high:.3g}" if seen.low < seen.high else f"of {seen.low:.3g}"
    region = f"in {seen.steps} minibatches rates from {useful[0]:.3g} to {useful[-1]:.3g} lower the loss"
    if all(seen.exploded(k) for k in seen.inside):
        message = f"Every learning rate {lr} makes the loss explode, while {region}: lower the range."
        return Check(name, "fail", message, numbers)
    if all(seen.barely(k) for k in seen.inside):
        message = f"No learning rate {lr} moves the loss, while {region}: raise the range."
        return Check(name, "warn", message, numbers)
    if seen.best > FAR * seen.high:
        message = f"The learning rate {lr} ends far below the best of a short run, {seen.best:.3g}: raise the range."
        return Check(name, "warn", message, numbers)
    if seen.best * FAR < seen.low:
        message = f"The learning rate {lr} starts far above the best of a short run, {seen.best:.3g}: lower the range."
        return Check(name, "warn", message, numbers)
    return Check(name, "pass", f"The learning rate {lr} is useful: {region}.", numbers)


def overfit(setup: Setup, lr: float) -> tuple[Check, float]:
    """Whether 20 samples can be learned by heart without regularisation (cs231n, "Sanity checks"), and the best rate.

    Rates down to a thousandth of ``lr`` are tried: in the few steps of a slow model's ladder one that kills all units
    may look best, for the loss at chance can be less than that at the start.
    """
    rates = [lr / divisor for divisor in OVERFIT_DIVISORS]
    bench = setup.train.head(OVERFIT_SAMPLES)
    enough = _all_right(setup, len(bench.targets))
    objectives = [setup.plain({"lr": rate}) for rate in rates]
    trained = train(bench, objectives, steps=OVERFIT_STEPS, batch_size=OVERFIT_SAMPLES, enough=enough or -math.inf)
    return _fitted(bench, trained, enough), rates[trained.best]


def _fitted(bench: Bench, trained: Trained, enough: float | None) -> Check:
    name = f"overfit_{OVERFIT_SAMPLES}"
    least, n_steps = _least(trained.losses[-1]), len(trained.losses)
    if enough is None:
        left = least / float(trained.losses[0].mean())
        seen = f"Of the loss on {len(bench.targets)} samples {left:.2%} is left after {n_steps} steps"
        if left <= FITTED:
            return Check(name, "pass", f"{seen}.", {"loss_left": left})
        return _not_fitted(seen, trained, {"loss_left": left})
    measured = _accuracies(trained, bench.samples, bench.targets, training=True).max()
    accuracy = 1.0 if least <= enough else float(measured)
    numbers = {"accuracy": accuracy, "loss": least, "steps": float(n_steps)}
    if accuracy == 1:
        return Check(name, "pass", f"{len(bench.targets)} samples are fitted to accuracy 1.0.", numbers)
    seen = f"The model fits {accuracy:.0%} of {len(bench.targets)} samples in {n_steps} steps"
    return _not_fitted(seen, trained, numbers)


def _all_right(setup: Setup, n_samples: int) -> float | None:
    """A mean loss at which not one of the samples can be wrong, for that one alone would cost more; None for ``mse``.

    A wrong sample costs at least ln 2 (its class has a probability of at most one half), or the margin.
    """
    match setup.objective.loss.kind:
        case "softmax":
            return 0.99 * math.log(2) / n_samples
        case "hinge":
            return 0.99 * setup.objective.loss.margin / n_samples
        case "mse":
            return None


def _not_fitted(seen: str, trained: Trained, numbers: dict[str, float]) -> Check:
    name = f"overfit_{OVERFIT_SAMPLES}"
    if len(trained.losses) < OVERFIT_STEPS and trained.falling():
        message = f"{seen}, all that time allowed, and the loss was still falling: see whether it gets there."
        return Check(name, "warn", message, numbers)
    advice = "the model, its initialisation or the learning rate is at fault; mend it before spending any budget"
    return Check(name, "fail", f"{seen}: {advice}.", numbers)


def _least(losses: torch.Tensor) -> float:
    finite = losses[torch.isfinite(losses)]
    return float(finite.min()) if len(finite) else math.inf


def _accuracies(
    trained: Trained, samples: torch.Tensor, targets: torch.Tensor, *, training: bool = False
) -> torch.Tensor:
    return (scores(trained.model, samples, training=training).argmax(1) == targets).double().mean(1)


def labels(setup: Setup, lr: float) -> Check:
    """Whether what is learned carries over to the validation split: with shuffled labels nothing does.

    Validation accuracy is compared with that of predictions that are as frequent but know nothing, Σ_c p(c) q(c) of the
    shares of class c among predictions and labels (the chance term of Cohen's kappa, 1960).
    """
    objectives = [setup.plain({"lr": rate}) for rate in (lr / 3, lr)]
    trained = train(setup.train, objectives, steps=LABEL_STEPS, batch_size=setup.batch_size)
    trained.model.keep(torch.tensor([trained.best], device=setup.train.device))
    if not setup.is_classifier:
        return _carried_over(setup, trained)
    fitted = setup.train.head(FITTED_SAMPLES)
    predicted = scores(trained.model, setup.validation.samples)[0].argmax(0)  # (n,)
    targets = setup.validation.targets
    accuracy = float((predicted == targets).double().mean())
    counts = [torch.bincount(t, minlength=setup.train.n_outputs).double() for t in (predicted, targets)]
    chance = float(counts[0] @ counts[1]) / len(targets) ** 2
    numbers = {
        "train_accuracy": float(_accuracies(trained, fitted.samples, fitted.targets)[0]),
        "val_accuracy": accuracy,
        "chance_accuracy": chance,
        "sigmas": (accuracy - chance) / math.sqrt(max(chance * (1 - chance) / len(targets), 1e-12)),
    }
    if numbers["sigmas"] >= SIGMAS:
        return Check("labels", "pass", "What is learned carries over to the validation split.", numbers)
    if numbers["train_accuracy"] >= numbers["chance_accuracy"] + LEARNED:
        message = (
            f"A model that fits {numbers['train_accuracy']:.0%} of the training samples is at chance on the validation "
            f"split ({numbers['val_accuracy']:.1%}): the labels look shuffled; check that they belong to their samples."
        )
        return Check("labels", "warn", message, numbers)
    message = f"Little is learned in {len(trained.losses)} minibatches, so the labels cannot be judged: check them."
    return Check("labels", "warn", message, numbers)


def _carried_over(setup: Setup, trained: Trained) -> Check:
    """As :func:`labels`, for a regression: by the mean squared error against that of the mean."""
    explained = {}
    for split, bench in (("train", setup.train), ("val", setup.validation)):
        errors = (scores(trained.model, bench.samples)[:, 0] - bench.targets).double().square().mean(1)
        errors = errors[torch.isfinite(errors)]
        variance = max(float(bench.targets.double().var(correction=0)), 1e-300)
        explained[f"{split}_r2"] = 1 - float(errors.min()) / variance if len(errors) else -math.inf
    if explained["val_r2"] > 0:
        return Check("labels", "pass", "What is learned carries over to the validation split.", explained)
    if explained["train_r2"] >= LEARNED:
        message = (
            f"A model that explains {explained['train_r2']:.0%} of the training targets explains none of the "
            "validation split: they look shuffled; check that they belong to their samples."
        )
        return Check("labels", "warn", message, explained)
    message = f"Little is learned in {len(trained.losses)} minibatches, so the targets cannot be judged: check them."
    return Check("labels", "warn", message, explained)
