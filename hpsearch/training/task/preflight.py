"""Checks of a task before its study spends its budget: the sanity checks of cs231n, on a net that we do not know."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hpsearch.errors import DataError, OutOfMemory
from hpsearch.objective import ALIASES, TaskObjective
from hpsearch.search.scale import from_unit
from hpsearch.space import Param, Params, Space
from hpsearch.training.data import Split
from hpsearch.training.losses import theoretical_initial_loss
from hpsearch.training.pack import EpochResult, never
from hpsearch.training.preflight.check import Check
from hpsearch.training.preflight.learning import (
    BARELY,
    FITTED,
    INSIDE,
    LADDER_STEPS,
    OUTSIDE,
    OVERFIT_SAMPLES,
    OVERFIT_STEPS,
    TINY,
    Ladder,
    climb,
    lr_range,
)
from hpsearch.training.preflight.probe import PLAIN
from hpsearch.training.preflight.setup import SAMPLES, ends
from hpsearch.training.preflight.start import OFF, SEEDS
from hpsearch.training.streams import Purpose, torch_stream
from hpsearch.training.task.data import TaskData
from hpsearch.training.task.loading import Task, user_code
from hpsearch.training.task.losses import BuiltinLoss, OwnLoss, TaskLoss, predicts
from hpsearch.training.task.pack import TaskPack
from hpsearch.training.task.stack import Setting, Stack, TaskMember

LOOKED_AT = 100
"""Samples of the first passes, or a minibatch if that is more."""

SECONDS = 2.5
"""After which a slow net stops early, but not before a tenth of the steps."""

PATIENCE = 7.5
"""Seconds more after which it stops even so: a worker that checks for a minute counts as lost."""

KEPT_NUMBERS = 200
"""Of a net of hundreds of tensors so many are kept: those that the gradient reaches least."""

SLOW = 0.05
"""Seconds of one training pass from which on fewer learning rates are tried."""

EPOCH_STEPS = 10
"""Minibatches of the ladder between two looks at the clock."""

HALVED = 0.5
"""Share of its start that a loss of the task's own must fall to on a few samples: where it ends, nobody knows."""

FALLING = 0.95
"""A loss is still falling if its last quarter is below this share of the quarter before."""


FAULTS = DataError, OutOfMemory, torch.OutOfMemoryError, MemoryError
"""What the user's code, or a net too large, raises."""


@dataclass(frozen=True)
class _Bench:
    """What the checks share: the study in the middle of its space, and some training samples in random order."""

    objective: TaskObjective
    space: dict[str, Param]
    task: Task
    train: Split
    validation: Split
    seed: int
    device: str
    pass_seconds: float = 0.0

    @property
    def is_slow(self) -> bool:
        """Whether time is too dear to try much, or to measure whether nets train faster as one."""
        return self.pass_seconds >= SLOW

    def plain(self, params: Params) -> TaskObjective:
        """The objective with ``params``, without a schedule and without any regularisation not in ``params``."""
        none: Params = {f"regularization.{name}": 0.0 for name in ("l2", "l1", "weight_decay")}
        return self.objective.with_params({**PLAIN, **none, **params})

    def first(self) -> Split:
        """What the first passes see."""
        n = max(LOOKED_AT, self.objective.batch_size)
        return Split(self.train.samples[:n], self.train.labels[:n])

    def stack(self, seed: int) -> Stack:
        """One untrained net."""
        objective = self.plain({})
        batch_size = objective.batch_size
        of = Setting(self.task, self.train, self.validation, self.seed, 1, batch_size, self.device, never)
        module = self.task.model(objective.params, seed).to(self.device)
        return Stack([0], [TaskMember(objective, seed)], [module], of, stacked=False)


@dataclass(frozen=True)
class _Trained:
    """What a short training left.

    Attributes:
        losses: of each epoch, those of all members; infinite from where one diverged.
        start: the loss before.
        accuracy: the best of any member in any epoch; None where there is none.
        steps: minibatches that were trained.
    """

    losses: list[list[float]]
    start: float
    accuracy: float | None
    steps: int

    def late(self) -> list[float]:
        """Each member's mean loss over the last quarter."""
        return _means(self.losses[-max(1, len(self.losses) // 4) :])

    def falling(self) -> bool:
        """Whether the loss of the member that came lowest was still falling."""
        quarter = max(1, len(self.losses) // 4)
        late, before = self.late(), _means(self.losses[-2 * quarter : -quarter])
        k = min(range(len(late)), key=late.__getitem__)
        return bool(before) and late[k] < before[k] - (1 - FALLING) * abs(before[k])


def preflight(
    objective: TaskObjective, space: Space, *, study_seed: int, task: Task, data: TaskData, device: str = "cpu"
) -> list[Check]:
    """Check a study of a task; seconds on one core for a net whose steps take milliseconds.

    What fails in the user's code is a check that failed. Those that could say nothing after it are left out.

    Args:
        objective: of the study, without params.
        space: of its first stage. What a check does not vary is set to the middle of its range, on its own scale.
        study_seed: of the study; what is drawn follows from it alone.
        task: of the objective.
        data: of the task, on ``device``.
        device: a torch device.
    """
    bench = _bench(objective, space, study_seed, task=task, data=data, device=device)
    checks = [_data(data)]
    looks = [("model", _model), ("metrics", _metrics), ("initial_loss", _initial_loss), ("gradients", _gradients)]
    for name, look in looks:
        if any(check.status == "fail" for check in checks):
            return checks
        if name != "metrics" or task.metrics is not None:
            checks.append(_guarded(name, look, bench))
    if any(check.status == "fail" for check in checks):
        return checks
    try:
        probe = _probe(bench)
        rates = _ladder(probe)
    except FAULTS as error:
        return [*checks, _failed("lr_range", error)]
    overfit = _guarded(f"overfit_{OVERFIT_SAMPLES}", lambda bench: _overfit(bench, rates.best), probe)
    return [*checks, _lr_range(rates), overfit]


def _bench(
    objective: TaskObjective, space: Space, study_seed: int, *, task: Task, data: TaskData, device: str
) -> _Bench:
    middle = objective.with_params({name: from_unit(param, 0.5) for name, param in space.items()})
    by_path = {ALIASES.get(name, name): param for name, param in space.items()}
    generator = torch_stream(study_seed, Purpose.PREFLIGHT)

    def some(split: Split) -> Split:
        index = torch.randperm(len(split.labels), generator=generator)[:SAMPLES].to(split.labels.device)
        return Split(split.samples[index], split.labels[index])

    return _Bench(middle, by_path, task, some(data.train), some(data.validation), study_seed, device)


def _probe(bench: _Bench) -> _Bench:
    """For short trainings: with the seconds of a step, and without metrics of the task's own.

    Those may not bear a few samples; :func:`_metrics` has tried them.
    """
    task = copy.copy(bench.task)
    task.metrics = None
    return replace(bench, task=task, pass_seconds=_pass_seconds(bench))


def _guarded(name: str, check: Callable[[_Bench], Check], bench: _Bench) -> Check:
    try:
        return check(bench)
    except FAULTS as error:
        return _failed(name, error)


def _failed(name: str, error: BaseException) -> Check:
    text = str(error)
    return Check(name, "fail", text if text.endswith(".") else f"{text}.")


def _data(data: TaskData) -> Check:
    """Whether there is anything to learn from; what is no data at all, :func:`task_data` has refused."""
    train, n_validation = data.train, len(data.validation_index)
    numbers = {"train": float(len(train.labels)), "validation": float(n_validation)}
    shape = " × ".join(map(str, train.samples.shape[1:])) or "one number"
    seen = f"{len(train.labels)} samples of {shape} to train on and {n_validation} to validate on"
    if len(train.labels) > 1 and bool((train.samples[1:] == train.samples[:1]).all()):
        return Check("data", "fail", f"All of {seen} are equal: there is nothing to learn from; check data().", numbers)
    if len(train.labels) > 1 and bool((train.labels[1:] == train.labels[:1]).all()):
        return Check("data", "warn", f"{seen}, all of one and the same target: check data().", numbers)
    return Check("data", "pass", f"{seen}.", numbers)


def _model(bench: _Bench) -> Check:
    """Whether the net of the middle of the space can be made and gives outputs that fit the targets."""
    stack = bench.stack(bench.seed)
    with user_code(f"{bench.task.entrypoint}: the model"):
        _, outputs = stack.modules.train(bench.first().samples)
    n_learned = sum(p.value.numel() for p in stack.modules.parameters)
    shape = ", ".join(["batch", *map(str, outputs.shape[2:])])
    message = f"The net has {n_learned:,} numbers to learn and gives outputs ({shape})."
    return Check("model", "pass", message, {"parameters": float(n_learned)})


def _metrics(bench: _Bench) -> Check:
    """Whether the task's own metrics are numbers."""
    assert bench.task.metrics is not None
    stack = bench.stack(bench.seed)
    with user_code(f"{bench.task.entrypoint}: metrics(outputs, targets)"):
        pieces = [stack.modules.evaluate(piece) for piece in torch.split(bench.validation.samples, 256)]
        found = bench.task.metrics(torch.cat(pieces, 1)[0], bench.validation.labels)
        if not isinstance(found, dict):
            raise TypeError(f"it must return a dict of numbers by name, not {type(found).__name__}")
        numbers = {str(name): float(value) for name, value in found.items()}
    names = _some(list(numbers)) or "nothing"
    kept = {name[:150]: value for name, value in list(numbers.items())[:KEPT_NUMBERS]}
    return Check("metrics", "pass", f"metrics(outputs, targets) of the untrained net gives {names}.", kept)


def _initial_loss(bench: _Bench) -> Check:
    """The loss at the start, against its theory where it is a built-in one (cs231n, "Sanity checks")."""
    seen = bench.first()
    losses, n_outputs = [], 1
    for k in range(SEEDS):
        stack = bench.stack(bench.seed + k)
        with user_code(f"{bench.task.entrypoint}: the model"):
            _, outputs = stack.modules.train(seen.samples)
        n_outputs = outputs.shape[2:].numel()
        losses.append(float(_loss(bench, outputs).mark(outputs, seen.labels).scored.loss[0]) / len(seen.labels))
    mean, kind = sum(losses) / SEEDS, bench.objective.loss
    own = bench.task.loss is not None
    chance = None if own else theoretical_initial_loss(kind, n_outputs)
    if chance is None and not own:
        chance = max(float(seen.labels.double().square().mean()), 1e-12)
    numbers = {"initial_loss": mean}
    what = f"The loss starts at {mean:.4g}"
    if not math.isfinite(mean):
        advice = "lower the initial weights, or scale the inputs to numbers around 1"
        return Check("initial_loss", "fail", f"{what}: {advice}.", numbers)
    if chance is None:
        return Check("initial_loss", "pass", f"{what}; of a loss of the task's own there is no theory.", numbers)
    numbers |= {"theory": chance, "ratio": mean / chance}
    theory = f"that of predicting 0, {chance:.4g}" if kind.kind == "mse" else f"its theory of {chance:.4g}"
    what = f"{what}, against {theory}"
    if mean > OFF * chance:
        advice = "the initial outputs are too large; lower the initial weights of the last layer, or scale the inputs"
        return Check("initial_loss", "warn", f"{what}: {advice}.", numbers)
    return Check("initial_loss", "pass", f"{what}.", numbers)


def _loss(bench: _Bench, outputs: torch.Tensor) -> TaskLoss:
    objective = bench.plain({})
    if bench.task.loss is None:
        return BuiltinLoss([objective], bench.device)
    return OwnLoss(bench.task, predicts(bench.task, objective.loss.kind, outputs[0], bench.train.labels), stacked=False)


def _gradients(bench: _Bench) -> Check:
    """The first gradient of every tensor that is to be learned."""
    stack, seen = bench.stack(bench.seed), bench.first()
    _, gradients = stack.gradients(seen.samples, seen.labels)
    names = [p.name for p in stack.modules.parameters]
    norms = {n: 0.0 if g is None else float(g.double().norm()) for n, g in zip(names, gradients, strict=True)}
    least = sorted(norms, key=lambda name: norms[name] if math.isfinite(norms[name]) else -1.0)[:KEPT_NUMBERS]
    numbers = {f"{name[-150:]}.gradient_norm": norms[name] for name in names if name in set(least)}
    infinite = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if infinite:
        advice = "look for a root, logarithm or division at 0, lower the initial weights or scale the inputs"
        return Check("gradients", "fail", f"The first gradient of {_some(infinite)} is not finite: {advice}.", numbers)
    silent = [name for name, norm in norms.items() if norm == 0]
    if silent:
        advice = (
            "they will not learn unless that changes; see whether forward uses them, and whether a layer after them "
            "starts dead or at zero, or set requires_grad = False"
        )
        return Check("gradients", "warn", f"No gradient reaches {_some(silent)}: {advice}.", numbers)
    return Check("gradients", "pass", f"The first gradient reaches all {len(norms)} tensors and is finite.", numbers)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def _lr_ends(bench: _Bench) -> tuple[float, float]:
    return ends(bench.objective, bench.space, "optimizer.lr")


def _ladder(bench: _Bench) -> Ladder:
    """Learning rates in and around the study's range, with the least regularisation of the study."""
    reg, _ = ends(bench.objective, bench.space, "regularization.l2")

    def attempt(rates: list[float], low: float, high: float) -> Ladder:
        # The first trains as good as nothing: what the loss of the same samples is without training.
        objectives = [bench.plain({"lr": rate, "reg": reg}) for rate in (TINY, *rates)]
        n_steps = max(1, min(EPOCH_STEPS, int(SECONDS / (5 * len(objectives) * bench.pass_seconds))))
        n = min(len(bench.train.labels), n_steps * bench.objective.batch_size)
        split = Split(bench.train.samples[:n], bench.train.labels[:n])
        trained = _train(bench, objectives, split, steps=LADDER_STEPS)
        start, *late = trained.late()
        return Ladder(rates, late, start if math.isfinite(start) else math.nan, low, high, trained.steps)

    return climb(
        *_lr_ends(bench),
        attempt,
        inside=3 if bench.is_slow else INSIDE,
        outside=1 if bench.is_slow else OUTSIDE,
        everywhere=not bench.is_slow,
    )


def _pass_seconds(bench: _Bench) -> float:
    """Of one training pass, the second: the first may compile."""
    stack, n = bench.stack(bench.seed), bench.objective.batch_size
    started = 0.0
    for _ in range(2):
        started = time.perf_counter()
        marked, _ = stack.gradients(bench.train.samples[:n], bench.train.labels[:n])
        marked.scored.loss.tolist()  # waits for the device
    return max(time.perf_counter() - started, 1e-6)


def _lr_range(seen: Ladder) -> Check:
    """As of a built-in net, but for a loss that no rate lowers or that is not positive."""
    if seen.useful() and seen.start > 0:
        return lr_range(seen)
    numbers = {f"loss_at_{rate:.3g}": loss for rate, loss in zip(seen.rates, seen.losses, strict=True)}
    numbers["initial_loss"] = seen.start
    tried = f"from {seen.rates[0]:.3g} to {seen.rates[-1]:.3g}"
    if seen.start <= 0:  # shares of it say nothing
        if min(seen.losses) < seen.start:
            message = f"The loss is not positive; {seen.best:.3g} lowers it most in {seen.steps} minibatches."
            return Check("lr_range", "pass", message, numbers | {"best": seen.best})
    elif all(seen.exploded(k) for k in range(len(seen.rates))):
        message = f"Every learning rate {tried} makes the loss explode: scale the inputs, or look at the loss."
        return Check("lr_range", "fail", message, numbers)
    message = (
        f"No learning rate {tried} lowers the loss in {seen.steps} minibatches: check the data, the loss and whether "
        "outputs depend on the parameters."
    )
    return Check("lr_range", "warn", message, numbers)


def _overfit(bench: _Bench, lr: float) -> Check:
    """Whether 20 samples can be learned by heart without regularisation (cs231n, "Sanity checks")."""
    name = f"overfit_{OVERFIT_SAMPLES}"
    few = Split(bench.train.samples[:OVERFIT_SAMPLES], bench.train.labels[:OVERFIT_SAMPLES])
    n = len(few.labels)
    objectives = [bench.plain({"lr": rate, "batch_size": n}) for rate in (lr / 10, lr / 3, lr)]
    own = bench.task.loss is not None

    def enough(t: _Trained) -> bool:
        by_loss = own or t.accuracy is None
        return t.accuracy == 1 or (by_loss and _left(t, t.losses[-1]) <= (HALVED if own else FITTED))

    trained = _train(bench, objectives, few, steps=OVERFIT_STEPS, until=enough)
    left = min(_left(trained, trained.late()), _left(trained, trained.losses[-1]))
    numbers = {"loss_left": left, "steps": float(trained.steps)}
    if trained.accuracy is not None:
        numbers["accuracy"] = trained.accuracy
        seen = f"The net fits {trained.accuracy:.0%} of {n} samples in {trained.steps} steps"
        if trained.accuracy == 1:
            return Check(name, "pass", f"{n} samples are fitted to accuracy 1.0.", numbers)
    else:
        seen = f"Of the loss on {n} samples {left:.2%} is left after {trained.steps} steps"
    if enough(trained):
        return Check(name, "pass", f"{seen}.", numbers)
    if trained.falling():
        return Check(name, "warn", f"{seen}, and the loss was still falling: see whether it gets there.", numbers)
    if own and left <= 1 - BARELY:
        advice = "see whether that is all that this loss can fall"
        return Check(name, "warn", f"{seen}, and no less: {advice}.", numbers)
    advice = (
        "the net, its initial weights, the loss or the learning rate is at fault; mend it before spending any budget"
    )
    return Check(name, "fail", f"{seen}: {advice}.", numbers)


def _left(trained: _Trained, losses: Sequence[float]) -> float:
    """The share of the start that the lowest of the losses is; of a start that is not positive, by how much it fell."""
    least = min((loss for loss in losses if math.isfinite(loss)), default=math.inf)
    if trained.start > 0:
        return least / trained.start
    return 1 - (trained.start - least) / max(abs(trained.start), 1e-12)


def _train(
    bench: _Bench,
    objectives: Sequence[TaskObjective],
    split: Split,
    *,
    steps: int,
    until: Callable[[_Trained], bool] = lambda _: False,
) -> _Trained:
    """Train one net per objective on the samples of ``split``, all from the same weights, as one pack where it fits."""
    try:
        return _train_pack(bench, objectives, split, steps, until)
    except OutOfMemory:
        if len(objectives) == 1:
            raise
    half = len(objectives) // 2
    one, other = (_train(bench, some, split, steps=steps) for some in (objectives[:half], objectives[half:]))
    n = min(len(one.losses), len(other.losses))
    losses = [a + b for a, b in zip(one.losses[:n], other.losses[:n], strict=True)]
    accuracies = [t.accuracy for t in (one, other) if t.accuracy is not None]
    return _Trained(losses, one.start, max(accuracies, default=None), min(one.steps, other.steps))


def _train_pack(
    bench: _Bench,
    objectives: Sequence[TaskObjective],
    split: Split,
    steps: int,
    until: Callable[[_Trained], bool],
) -> _Trained:
    n, batch_size = len(split.labels), objectives[0].batch_size
    per_epoch = math.ceil(n / batch_size)
    n_epochs = math.ceil(steps / per_epoch)
    looked_at = np.arange(min(n, OVERFIT_SAMPLES))  # in evaluation mode: without dropout
    data = TaskData(split, np.arange(n), looked_at, bench.seed)
    members = [TaskMember(objective, bench.seed) for objective in objectives]
    stacked = False if bench.is_slow else None
    pack = TaskPack(
        members, bench.task, data, data_seed=bench.seed, epochs=n_epochs, device=bench.device, stacked=stacked
    )
    losses: list[list[float]] = []
    start, accuracy, end = math.nan, None, time.monotonic() + SECONDS
    trained = _Trained(losses, start, accuracy, 0)
    while pack.epoch < n_epochs and pack.live:
        results = pack.train_epoch()
        if pack.epoch == 1:
            starts = [result.metrics.get("diag/initial_loss", math.nan) for result in results]
            start = next((loss for loss in starts if math.isfinite(loss)), math.nan)
        row = [math.inf] * len(objectives)
        for result in results:
            if result.diverged is None:
                row[result.member] = result.metrics["train_loss"]
        losses.append(row)
        accuracy = max((a for a in (accuracy, *map(_accuracy, results)) if a is not None), default=None)
        trained = _Trained(losses, start, accuracy, pack.epoch * per_epoch)
        late = time.monotonic() - end
        if until(trained) or (late > 0 and trained.steps >= steps // 10) or late > PATIENCE:
            break
    return trained


def _accuracy(result: EpochResult) -> float | None:
    """Of training or evaluation, the better: dropout mars the one, young running statistics the other."""
    found = [result.metrics[name] for name in ("train_accuracy", "val_accuracy") if name in result.metrics]
    return max(found, default=None)


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]
