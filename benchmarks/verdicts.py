"""Do the verdicts name known faults? Trains nets with faults that are known because they were put there.

python benchmarks/verdicts.py [--seeds 4] [--write]

Half of the cases were kept aside: their seeds, splits of the data and orders of minibatches were never looked at while
the rules and this benchmark were written.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpsearch.objective import TrainObjective
from hpsearch.training import Dataset, Member, Pack
from hpsearch.training.data import stratified
from hpsearch.training.samples import Samples
from hpsearch.training.sources import read_samples
from hpsearch.trial import StepMetrics, TrialState
from hpsearch.verdicts import NAMES, judge

CIFAR10 = Path(__file__).parents[1].parent / "shared" / "data" / "cifar10"
FAULTS = [name for name in NAMES if name not in ("healthy", "still_improving")]
ASIDE = 100
"""From this seed on."""
RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass(frozen=True)
class Data:
    """One data set and a learning rate that suits a two-layer net on it (sgd, momentum 0.9)."""

    name: str
    samples: Samples
    document: dict[str, Any]
    lr: float
    reg: float
    n_train: int = 1000
    n_validation: int = 500
    epochs: float = 1.0

    def split(self, n_train: int, *, shuffled: bool, seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        y = rng.permutation(self.samples.y) if shuffled else self.samples.y
        validation, rest = stratified(np.arange(len(y)), y, self.n_validation, rng)
        train, _ = stratified(rest, y, min(n_train, len(rest) - 1), rng)
        return Dataset(replace(self.samples, y=y), train, validation, device="cpu")


@dataclass(frozen=True)
class Fault:
    """What is done to a good set-up, and the verdicts of which one must be given.

    Attributes:
        right: any of them is right; of several, because they are two names of one thing.
        lr: the good rate is multiplied by it.
        params: of the objective.
        n_train: training samples.
        dead: share of first-layer units whose bias is set so low that they never fire.
    """

    name: str
    right: frozenset[str]
    lr: float = 1.0
    reg: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10
    n_train: int | None = None
    shuffled: bool = False
    dead: float = 0.0
    hidden: tuple[int, ...] = (50,)
    activation: str = "relu"


def faults() -> list[Fault]:
    good = frozenset({"healthy"})
    low, high = frozenset({"lr_too_low"}), frozenset({"lr_too_high"})
    small: dict[str, Any] = {"epochs": 40, "n_train": 50}
    tanh: dict[str, Any] = {"activation": "tanh", "params": {"model.init": "xavier"}}
    return [
        Fault("none", good),
        Fault("none, tanh", good, **tanh),
        Fault("none, lr × 1/3", good, lr=1 / 3),
        Fault("none, lr × 2", good, lr=2),
        Fault("lr × 0.001", low, lr=0.001),
        Fault("lr × 0.001, tanh", low, lr=0.001, **tanh),
        Fault("lr × 0.01", low, lr=0.01),
        Fault("lr × 100", high, lr=100),
        Fault("lr × 100, tanh", high, lr=100, **tanh),
        Fault("lr × 1000", high, lr=1000),
        Fault("huge init", frozenset({"saturated"}), params={"model.init_gain": 30.0}),
        Fault("huge init, tanh", frozenset({"saturated"}), activation="tanh", params={"model.init_gain": 30.0}),
        Fault(
            "tiny init, deep", frozenset({"plateau_then_progress"}), hidden=(50, 50, 50), epochs=30,
            params={"model.init_gain": 0.2},
        ),
        Fault("shuffled labels", frozenset({"overfitting"}), shuffled=True, epochs=40, n_train=300),
        Fault("no regularisation", frozenset({"overfitting"}), reg=0.0, **small),
        Fault("too much regularisation", frozenset({"underfitting"}), reg=1e4),
        Fault("dead units, all", frozenset({"dead_units"}), dead=1.0),
        Fault("dead units, 60 %", frozenset({"dead_units"}), dead=0.6),
    ]  # fmt: skip


@dataclass(frozen=True)
class Case:
    data: str
    fault: Fault
    seed: int
    verdicts: tuple[str, ...]
    curve: list[StepMetrics]

    @property
    def right(self) -> bool:
        return bool(self.fault.right & set(self.verdicts))


def run(data: Data, fault: Fault, seeds: Sequence[int], dataset: Dataset) -> Iterator[Case]:
    """All seeds of one fault as one pack."""
    reg = data.reg if fault.reg is None else fault.reg * (data.reg or 1)
    base = TrainObjective.model_validate(
        {
            "kind": "train", "data": {"source": "digits"}, "batch_size": 50,
            "model": {"kind": "mlp", "hidden": list(fault.hidden), "activation": fault.activation},
            **data.document,
        }
    )  # fmt: skip
    epochs = fault.epochs if fault.n_train else round(fault.epochs * data.epochs)
    batch_size = min(base.batch_size, max(10, dataset.n_train // 20))
    objective = base.with_params({"batch_size": batch_size, "lr": data.lr * fault.lr, "reg": reg, **fault.params})
    pack = Pack([Member(objective, seed) for seed in seeds], dataset, data_seed=seeds[0], epochs=epochs)
    if fault.dead:
        kill(pack, fault.dead, scale=dataset.prepared(objective.preprocess).rms)
    curves: list[list[StepMetrics]] = [[] for _ in seeds]
    states = [TrialState.COMPLETED] * len(seeds)
    while pack.epoch < epochs and pack.live:
        for result in pack.train_epoch():
            curves[result.member].append(StepMetrics(result.member, result.epoch, result.metrics))
            if result.diverged:
                states[result.member] = TrialState.DIVERGED
    for seed, curve, state in zip(seeds, curves, states, strict=True):
        found = judge(curve, state=state, metric="val_accuracy", direction="maximize")
        yield Case(data.name, fault, seed, tuple(v.name for v in found), curve)


def kill(pack: Pack, share: float, *, scale: float) -> None:
    """Set biases of the first layer far below anything that its inputs reach."""
    bias = next(p for p in pack.model.parameters if p.name.endswith("bias"))
    n_units = bias.value.shape[1]
    bias.value[:, : round(share * n_units)] = -1000.0 * scale


def digits() -> Data:
    objective = TrainObjective.model_validate({"kind": "train", "data": {"source": "digits"}})
    return Data("digits", read_samples(objective.data), {"preprocess": ["zero_mean"]}, lr=0.01, reg=1e-3)


def second() -> Data:
    """CIFAR-10 where it is there, else scikit-learn's breast cancer data."""
    if CIFAR10.exists():
        document = {"kind": "train", "data": {"source": "parquet", "path": str(CIFAR10)}}
        samples = read_samples(TrainObjective.model_validate(document).data)
        return Data(
            "CIFAR-10", samples, {"preprocess": ["standardize"], "batch_size": 100}, lr=0.003, reg=1e-3, n_train=20_000,
            n_validation=2000, epochs=0.5,
        )  # fmt: skip
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    samples = Samples(found.data.astype(np.float32), found.target.astype(np.int64), 2)
    return Data("breast cancer", samples, {"preprocess": ["standardize"]}, lr=0.01, reg=1e-3, n_validation=200)


def collect(seeds: Sequence[int], only: str, sources: Sequence[Callable[[], Data]]) -> list[Case]:
    """All faults, each data set with its own split for the first of ``seeds``."""
    cases = []
    for data in (source() for source in sources):
        datasets: dict[tuple[int, bool], Dataset] = {}
        for fault in faults():
            if only not in fault.name:
                continue
            key = (fault.n_train or data.n_train, fault.shuffled)
            if key not in datasets:
                datasets[key] = data.split(key[0], shuffled=key[1], seed=seeds[0])
            cases += list(run(data, fault, seeds, datasets[key]))
    return cases


def table(cases: Sequence[Case]) -> str:
    lines = [f"| fault | cases | right | {' | '.join(NAMES)} |", f"|---|---|---|{'---|' * len(NAMES)}"]
    for fault in faults():
        own = [case for case in cases if case.fault.name == fault.name]
        if not own:
            continue
        counts = Counter(name for case in own for name in case.verdicts)
        cells = [(f"**{counts[n]}**" if n in fault.right else str(counts[n])) if counts[n] else "" for n in NAMES]
        lines.append(f"| {fault.name} | {len(own)} | {sum(c.right for c in own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def share(cases: Sequence[Case]) -> str:
    right = sum(case.right for case in cases)
    return f"{right} of {len(cases)} ({right / max(1, len(cases)):.1%})"


def report(cases: Sequence[Case]) -> str:
    names = list(dict.fromkeys(case.data for case in cases))
    lines = [table(cases), "", f"Right label among the verdicts: {share(cases)}."]
    lines += [f"- {name}: {share([c for c in cases if c.data == name])}" for name in names]
    lines += [
        f"- seeds that the rules were written with: {share([c for c in cases if c.seed < ASIDE])}",
        f"- seeds, splits and orders kept aside: {share([c for c in cases if c.seed >= ASIDE])}",
    ]
    sound = [case for case in cases if case.fault.right == {"healthy"}]
    alarms = sum(bool(set(case.verdicts) & set(FAULTS)) for case in sound)
    lines.append(f"- false alarms (a fault named where there is none): {alarms} of {len(sound)}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="of either half")
    parser.add_argument("--seen", action="store_true", help="only the half that rules are written with")
    parser.add_argument("--digits", action="store_true", help="only that data set")
    parser.add_argument("--only", default="", help="faults whose name holds this text")
    parser.add_argument("--curves", action="store_true", help="print the curves of cases without the right label")
    parser.add_argument("--all-curves", action="store_true", help="print all curves")
    parser.add_argument("--write", action="store_true", help="put the section Verdicts into RESULTS.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    halves = [range(args.seeds)] if args.seen else [range(args.seeds), range(ASIDE, ASIDE + args.seeds)]
    sources = [digits] if args.digits else [digits, second]
    cases = [case for seeds in halves for case in collect(seeds, args.only, sources)]
    seconds = time.perf_counter() - start
    text = report(cases)
    print(text)
    if args.curves or args.all_curves:
        for case in cases:
            if args.all_curves or not case.right:
                show(case)
    if args.write:
        machine = f"{os.cpu_count()} × {platform.machine()} CPU, torch {torch.__version__}, 1 thread"
        head = f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {seconds:.0f} s; `python benchmarks/verdicts.py --write`."
        write(f"## Verdicts\n\n{head}\n\n{text}\n")
    return 0 if sum(case.right for case in cases) >= 0.95 * len(cases) else 1


def show(case: Case) -> None:
    print(case.data, case.fault.name, case.seed, case.verdicts)
    for name in ("train_loss", "val_loss", "val_accuracy", "diag/update_ratio", "diag/dead", "diag/saturated"):
        print("   ", name, [f"{p.values[name]:.3g}" for p in case.curve if name in p.values])
    print("    start", case.curve[0].values.get("diag/initial_loss"))


def write(section: str) -> None:
    """Replace the section of RESULTS.md with the same heading, or add it."""
    heading = section.splitlines()[0]
    old = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    before, found, rest = old.partition(f"\n{heading}\n")
    after = rest[rest.index("\n## ") :] if found and "\n## " in rest else ""
    RESULTS.write_text(f"{before.rstrip()}\n\n{section.rstrip()}\n{after}")


if __name__ == "__main__":
    sys.exit(main())
