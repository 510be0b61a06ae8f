"""Checks of the untrained model: its loss, its regularisation, its activations and gradients, its symmetry."""

from __future__ import annotations

import math

import torch

from hpsearch.training.layers import Parameter
from hpsearch.training.losses import build_loss
from hpsearch.training.models import StackedModel
from hpsearch.training.optimisers import build_optimiser
from hpsearch.training.preflight.check import Check
from hpsearch.training.preflight.probe import scores, train
from hpsearch.training.preflight.setup import Setup

OFF = 1.5
"""An initial loss over so many times its theory: scores of standard deviation 1 add about ½ to the cross-entropy, which
is 22 % for ten classes and 36 % for two (there the score difference counts); more is no theory's."""

START_SAMPLES = 250
"""Of the first loss: its standard error is then a few percent, and the limit is :data:`OFF`."""

SEEDS = 3
"""Initial weights are drawn so many times, for one draw may be lucky."""

DEAD, SATURATED = 0.4, 0.5
"""Shares of units, or activations, of a layer from which on it is said; as for the verdicts of those names."""

SPREAD_RATIO = 1e3
"""Between the widest and the narrowest spread of activations of two hidden layers: the signal vanishes or explodes."""

GRADIENT_RATIO = 1e4
"""Between the largest and the smallest gradient of two layers, each against its weights: no single rate suits both, for
healthy updates span about 1e-4 to 1e-2 of the weights, a factor of 100."""

STRONG = 10.0
"""A penalty of so many times the loss at chance, at the low end of its range, leaves the data no say."""

SYMMETRY_STEPS = 20


def initial_loss(setup: Setup) -> Check:
    """The loss at the start against its theory, without regularisation (cs231n, "Sanity checks")."""
    objectives = [setup.plain({})] * SEEDS
    model = setup.train.model(objectives, one_seed=False)
    head = setup.train.head(START_SAMPLES)
    outputs = scores(model, head.samples, training=True)
    loss = build_loss(objectives, setup.train.device).score(outputs, head.targets).loss
    mean = float(loss.mean()) / outputs.shape[2]
    numbers = {"initial_loss": mean, "theory": setup.chance, "ratio": mean / setup.chance}
    theory = f"its theory of {setup.chance:.4g}" if setup.is_classifier else f"that of predicting 0, {setup.chance:.4g}"
    seen = f"The loss starts at {mean:.4g}, against {theory}"
    if not math.isfinite(mean):
        advice = "lower the initial weights (model.init, init_gain) or standardize the inputs"
        return Check("initial_loss", "fail", f"{seen}: {advice}.", numbers)
    if mean > OFF * setup.chance:
        advice = "the initial scores are too large; lower model.init_gain or use init: he, or scale the inputs"
        return Check("initial_loss", "warn", f"{seen}: {advice}.", numbers)
    return Check("initial_loss", "pass", f"{seen}.", numbers)


def regularisation(setup: Setup) -> Check:
    """The loss rises when the regularisation rises (cs231n, "Sanity checks")."""
    low, high = setup.ends("regularization.l2")
    levels = [0.0, low or 0.01, max(high, 10 * (low or 0.01))]
    objectives = [setup.plain({"reg": level}) for level in levels]
    model = setup.train.model(objectives)
    optimiser = build_optimiser(objectives, model.parameters, epochs=1, steps_per_epoch=1, device=setup.train.device)
    penalties: list[float] = optimiser.penalty().tolist()
    numbers = {f"penalty_at_{level:g}": penalty for level, penalty in zip(levels, penalties, strict=True)}
    if not model.parameters or all(not bool(p.value.any()) for p in model.parameters if p.penalised):
        return Check("regularisation", "pass", "The weights start at zero, and so does the penalty.", numbers)
    if not penalties[0] == 0 < penalties[1] < penalties[2]:
        return Check(
            "regularisation", "fail", "The loss does not rise with reg: this is a fault of hpsearch; please report it.",
            numbers,
        )  # fmt: skip
    if low > 0 and penalties[1] > STRONG * setup.chance:
        return Check(
            "regularisation", "warn",
            f"Even reg {low:g} starts with a penalty of {penalties[1]:.4g}, {penalties[1] / setup.chance:.3g} times "
            "the loss at chance: lower the low end of its range.", numbers,
        )  # fmt: skip
    return Check("regularisation", "pass", "The loss rises when reg rises.", numbers)


def activations(setup: Setup) -> Check:
    """Mean, spread, saturation and dead share of every hidden layer at the start."""
    model = setup.train.model([setup.plain({})] * SEEDS, one_seed=False)
    layers = model.activities(setup.train.samples[:100])
    numbers: dict[str, float] = {}
    for layer in layers:
        for name in ("mean", "spread", "dead", "saturated"):
            numbers[f"{layer.name}.{name}"] = float(getattr(layer, name).mean())
    if not layers:
        return Check("activations", "pass", "There are no hidden layers.", numbers)
    for layer in layers:
        dead, saturated = numbers[f"{layer.name}.dead"], numbers[f"{layer.name}.saturated"]
        if dead >= DEAD:
            advice = "lower the initial weights, use leaky_relu, or centre the inputs"
            seen = f"{dead:.0%} of the units of {layer.name} start dead"
            return Check("activations", "warn", f"{seen}: {advice}.", numbers)
        if saturated >= SATURATED:
            advice = "lower the initial weights (init: xavier) or standardize the inputs"
            seen = f"{saturated:.0%} of the activations of {layer.name} start saturated"
            return Check("activations", "warn", f"{seen}: {advice}.", numbers)
    spreads = [numbers[f"{layer.name}.spread"] for layer in layers]
    if not all(math.isfinite(spread) for spread in spreads):
        message = "The activations are not finite: lower the initial weights or standardize the inputs."
        return Check("activations", "fail", message, numbers)
    if max(spreads) > SPREAD_RATIO * min(spreads):
        return Check(
            "activations", "warn",
            f"The spread of the activations goes from {spreads[0]:.3g} in the first to {spreads[-1]:.3g} in the last "
            "hidden layer: choose an init that keeps it (he for ReLU, xavier for tanh), or batch norm.", numbers,
        )  # fmt: skip
    return Check("activations", "pass", "No layer starts dead or saturated, and the signal keeps its spread.", numbers)


def gradients(setup: Setup) -> Check:
    """Norm of the gradient of every weight tensor at the start, and against that of its weights."""
    objective = setup.plain({})
    model = setup.train.model([objective])
    model.begin_epoch(1)
    inputs, targets = setup.train.samples[:200], setup.train.targets[:200]
    scored = build_loss([objective], setup.train.device).score(model.forward(inputs, training=True), targets)
    model.backward(scored.gradient.div_(len(inputs)))
    weights = [p for p in model.parameters if p.penalised]
    norms = {p.name: _norm(p.grad) for p in weights}
    numbers = {f"{name}.gradient_norm": norm for name, norm in norms.items()}
    if not all(math.isfinite(norm) for norm in norms.values()):
        message = "The first gradient is not finite: lower the initial weights or standardize the inputs."
        return Check("gradients", "fail", message, numbers)
    silent = [name for name, norm in norms.items() if norm == 0]
    if silent:
        message = f"No gradient reaches {', '.join(silent)}: they will not learn; choose another model.init."
        return Check("gradients", "warn", message, numbers)
    ratios = {p.name: norms[p.name] / (_norm(p.value) or math.inf) for p in weights}
    least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    if ratios[most] > GRADIENT_RATIO * ratios[least]:
        return Check(
            "gradients", "warn",
            f"Against its weights the gradient of {most} is {ratios[most] / max(ratios[least], 1e-300):.1e} times that "
            f"of {least}, so no learning rate suits both: change model.init, or use batch norm or adam.", numbers,
        )  # fmt: skip
    return Check("gradients", "pass", "The gradient reaches every layer, in comparable size.", numbers)


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


def symmetry(setup: Setup, lr: float) -> Check:
    """Whether hidden units of one layer are still equal after some steps, as after an all-zero start (cs231n)."""
    name = "symmetry"
    param = setup.space.get("model.init")
    chosen = param is not None and param.contains("zeros")
    zeros = chosen or setup.objective.model.init == "zeros"
    objective = setup.plain({"lr": lr, **({"model.init": "zeros"} if zeros else {})})
    trained = train(setup.train, [objective], steps=SYMMETRY_STEPS, batch_size=setup.batch_size)
    layers = _hidden(trained.model)
    if not layers:
        return Check(name, "pass", "There are no hidden units that could be equal.")
    numbers = {f"{layer.name}.difference": _difference(layer.value) for layer in layers}
    if max(numbers.values()) > 0:
        return Check(name, "pass", "Hidden units of a layer differ from each other.", numbers)
    seen = f"After {SYMMETRY_STEPS} steps all hidden units of a layer are still equal, as one unit"
    advice = "take zeros out of the choices of model.init" if chosen else "start from random weights (model.init: he)"
    return Check(name, "warn" if chosen else "fail", f"{seen}: {advice}.", numbers)


def _hidden(model: StackedModel) -> list[Parameter]:
    """Weight tensors of hidden layers, (K, units, …): all but the last, which makes the scores."""
    return [p for p in model.parameters if p.penalised][:-1]


def _difference(weights: torch.Tensor) -> float:
    """The largest difference between two units of the first member in one weight."""
    units = weights[0]
    return float((units.amax(0) - units.amin(0)).max())
