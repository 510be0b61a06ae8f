"""The lecture's study on CIFAR-10, for real: wall-clock to a validation accuracy, our service against Optuna.

    python -m benchmarks.search --cifar10 --cap 300

A two-layer net with 50 hidden units, lr 1e-6 to 1e-3, reg 1e-5 to 1e5, momentum, batches of 100, lr multiplied by 0.9
after every epoch, 45,000 training and 5,000 validation images, 100 coarse trials of one epoch (cs231n, "Hyperparameter
optimization"). Ours is ``hpsearch run`` as a user types it, start-up, checks and store included, in float32 and once
more in bfloat16. Beside it Optuna's TPE with its Hyperband pruner over the same net, initial
weights and loop in plain PyTorch, in as many processes and threads as train most samples per second here, measured
before; its processes share a journal file. The peer ends at the first epoch of any trial that reaches the target, ours
when such a trial completes. Both read the same cache of decoded images, which is made before.
"""

from __future__ import annotations

import json
import math
import multiprocessing as mp
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "cifar10"
HIDDEN, BATCH_SIZE, MOMENTUM, LR_DECAY = 50, 100, 0.9, 0.9
LR, REG = (1e-6, 1e-3), (1e-5, 1e5)
FINE_EPOCHS = 8
"""Of a full training: of our fine stage, and the most that the peer's Hyperband gives a trial."""


@dataclass(frozen=True)
class Size:
    """How much is trained. The real thing is the default; smaller ones are for trying it out."""

    train: int = 45_000
    validation: int = 5_000
    coarse: int = 100
    target: float = 0.48


def document(size: Size, precision: str = "float32", seed: int = 0) -> dict[str, Any]:
    """The study: coarse, then fine until the target is reached."""
    return {
        "name": "cifar10-two-layer",
        "objective": {
            "kind": "train",
            "data": {"source": "parquet", "path": str(DATA), "validation": size.validation, "train": size.train},
            "preprocess": ["zero_mean"],
            "model": {"kind": "mlp", "hidden": [HIDDEN]},
            "optimizer": {"kind": "sgd", "momentum": MOMENTUM, "lr_decay": LR_DECAY},
            "batch_size": BATCH_SIZE,
            "precision": precision,
        },
        "metric": {"name": "val_accuracy", "direction": "maximize"},
        "space": {
            "lr": {"type": "float", "low": LR[0], "high": LR[1], "log": True},
            "reg": {"type": "float", "low": REG[0], "high": REG[1], "log": True},
        },
        "stages": [
            {"name": "coarse", "trials": size.coarse, "epochs": 1, "on_border": "extend"},
            {"name": "fine", "trials": 200, "epochs": FINE_EPOCHS, "early_stopping": {"name": "asha"}},
        ],
        "stop": {"target": size.target},
        "seed": seed,
    }


# -- ours -------------------------------------------------------------------------------------------------------------


def ours(size: Size, precision: str, seed: int, cap: float) -> dict[str, Any]:
    """Seconds of ``hpsearch run`` from its start to its end, and what the store says afterwards."""
    with tempfile.TemporaryDirectory(prefix="hpsearch-cifar10-") as folder:
        spec, store = Path(folder) / "study.yaml", f"sqlite:///{folder}/hpsearch.db"
        told = document(size, precision, seed) | {"stop": {"target": size.target, "seconds": cap}}
        spec.write_text(yaml.safe_dump(told))
        command = [sys.executable, "-m", "hpsearch", "run", str(spec), "--store", store, "--port", "0", "--json"]
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"hpsearch run ended with {done.returncode}: {done.stdout[-2000:]}")
        return {"seconds": seconds, **_told(store)}


def _told(url: str) -> dict[str, Any]:
    """Best, stages and flags of the study in a store."""
    from hpsearch.insight import Insights
    from hpsearch.search.borders import border_evidence, results
    from hpsearch.store import TrialQuery, all_trials
    from hpsearch_storage import open_store

    store = open_store(url)
    study = store.study("cifar10-two-layer")
    stages = store.stages(study.id)
    insights = Insights(store)
    best = insights.best(study, stages)
    flags = [flag for flag in insights.flags(study, stages) if flag.parameter == "lr"]
    trials = all_trials(store, study.id, TrialQuery(stage=stages[0].name))
    evidence = border_evidence(results(study.spec.space, trials, study.spec.metric))
    return {
        "reason": study.reason,
        "best": best,
        "stages": [f"{s.name}: {s.n_finished} of {s.n_trials} trials × {s.spec.n_epochs} epochs" for s in stages],
        "flags": [f"{flag.stage}: {flag.level}, {flag.verdict}: {flag.message}" for flag in flags],
        "evidence": [
            f"{e.side} border of {e.parameter} after {stages[0].name}: p = {e.p_value:.2g}, at the border with "
            f"probability {e.at_border:.2f}, {e.hits} of the best {e.n_best} in the outer band"
            + (f", a cliff with {e.cliff.n_diverged} diverged trials beyond" if e.cliff else "")
            for e in evidence
            if e.parameter == "lr"
        ],
    }


# -- Optuna -----------------------------------------------------------------------------------------------------------


class PlainLoop:
    """The net and its training in plain PyTorch, on data loaded once per process."""

    def __init__(self, size: Size, threads: int) -> None:
        import torch

        from hpsearch.objective import TrainObjective
        from hpsearch.training import load_dataset

        torch.set_num_threads(threads)
        objective = TrainObjective.model_validate(document(size)["objective"])
        prepared = load_dataset(objective, study_seed=0).prepared(objective.preprocess)
        self.rms = prepared.rms
        self.train = prepared.train.samples.flatten(1), prepared.train.labels
        self.validation = prepared.validation.samples.flatten(1), prepared.validation.labels

    def net(self) -> Any:
        """With the initial weights that ours has."""
        import torch
        from torch import nn

        first, last = nn.Linear(self.train[0].shape[1], HIDDEN), nn.Linear(HIDDEN, 10)
        with torch.no_grad():
            first.weight.normal_(0, math.sqrt(2 / first.in_features) / self.rms)
            last.weight.normal_(0, 0.3 / math.sqrt(HIDDEN))
            first.bias.zero_()
            last.bias.zero_()
        return nn.Sequential(first, nn.ReLU(), last)

    def epoch(self, net: Any, optimizer: Any) -> None:
        import torch

        x, y = self.train
        cross_entropy = torch.nn.functional.cross_entropy
        for index in torch.split(torch.randperm(len(y)), BATCH_SIZE):
            optimizer.zero_grad()
            cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()

    def accuracy(self, net: Any) -> float:
        import torch

        with torch.no_grad():
            return float((net(self.validation[0]).argmax(1) == self.validation[1]).float().mean())

    def optimizer(self, net: Any, lr: float, reg: float) -> Any:
        """Like ours with the penalty on weights, not on biases."""
        import torch

        weights = [p for p in net.parameters() if p.ndim > 1]
        biases = [p for p in net.parameters() if p.ndim == 1]
        groups = [{"params": weights, "weight_decay": reg}, {"params": biases, "weight_decay": 0.0}]
        return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)


def _measure(size: Size, threads: int, seconds: float, barrier: Any, rates: Any) -> None:
    loop = PlainLoop(Size(train=2000, validation=size.validation), threads)
    net = loop.net()
    optimizer = loop.optimizer(net, 1e-5, 0.0)
    loop.epoch(net, optimizer)
    barrier.wait()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        loop.epoch(net, optimizer)
        n += len(loop.train[1])
    rates.put(n / (time.perf_counter() - start))


def best_setting(size: Size, seconds: float = 3.0) -> tuple[int, int, dict[str, float]]:
    """Processes and threads per process that train most samples per second, and all rates."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = mp.get_context("spawn")
    rates: dict[tuple[int, int], float] = {}
    processes = 1
    while processes <= cores:
        threads = max(1, cores // processes)
        barrier, found = context.Barrier(processes), context.Queue()
        job = (size, threads, seconds, barrier, found)
        crew = [context.Process(target=_measure, args=job) for _ in range(processes)]
        for process in crew:
            process.start()
        rates[processes, threads] = sum(found.get() for _ in crew)
        for process in crew:
            process.join()
        processes *= 2
    processes, threads = max(rates, key=lambda key: rates[key])
    return processes, threads, {f"{p} × {t} threads": rate for (p, t), rate in rates.items()}


def _optimize(size: Size, threads: int, journal: str, number: int, *, cap: float, reached: Any, told: Any) -> None:
    """One process of the peer: trials until somebody reaches the target or the time is over."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = time.perf_counter()
    loop = PlainLoop(size, threads)
    study = optuna.create_study(
        study_name="cifar10",
        storage=optuna.storages.JournalStorage(JournalFileBackend(journal)),
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=number),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=FINE_EPOCHS),
    )

    def objective(trial: optuna.Trial) -> float:
        net = loop.net()
        lr, reg = trial.suggest_float("lr", *LR, log=True), trial.suggest_float("reg", *REG, log=True)
        optimizer = loop.optimizer(net, lr, reg)
        best = 0.0
        for epoch in range(1, FINE_EPOCHS + 1):
            loop.epoch(net, optimizer)
            for group in optimizer.param_groups:
                group["lr"] *= LR_DECAY
            accuracy = loop.accuracy(net)
            best = max(best, accuracy)
            if accuracy >= size.target:
                reached.set()
            if reached.is_set() or time.perf_counter() - start > cap:
                trial.study.stop()
                break
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    study.optimize(objective)
    done = [t for t in study.trials if t.value is not None]
    told.put((len(study.trials), max((t.value for t in done), default=0.0)))


def optuna_seconds(size: Size, processes: int, threads: int, seed: int, cap: float) -> dict[str, Any]:
    """Seconds until one of the peer's trials reaches the target, or until the cap."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="hpsearch-cifar10-") as folder:
        reached, told = context.Event(), context.Queue()
        journal = str(Path(folder) / "journal.log")
        start = time.perf_counter()
        crew = [
            context.Process(
                target=_optimize,
                args=(size, threads, journal, 1000 * seed + number),
                kwargs={"cap": cap, "reached": reached, "told": told},
            )
            for number in range(processes)
        ]
        for process in crew:
            process.start()
        hit = reached.wait(cap)
        seconds = time.perf_counter() - start
        counts = [told.get() for _ in crew]
        for process in crew:
            process.join()
    return {"seconds": seconds, "reached": hit, "trials": max(c[0] for c in counts), "best": max(c[1] for c in counts)}


def compare(size: Size, cap: float, repeats: int) -> str:
    """Both, one after the other, with several seeds; Markdown."""
    PlainLoop(size, 1)  # decodes the images once for both
    processes, threads, rates = best_setting(size)
    runs = [
        {precision: ours(size, precision, seed, cap) for precision in ("float32", "bfloat16")}
        | {"peer": optuna_seconds(size, processes, threads, seed, cap)}
        for seed in range(repeats)
    ]
    peer = statistics.median(run["peer"]["seconds"] for run in runs)
    lines = [
        f"Seconds to val_accuracy {size.target:g} on {size.validation:,} validation images, {size.train:,} to train; "
        f"the median of {repeats} seeds, and each:",
        "",
        f"- Optuna TPE + Hyperband, {processes} × {threads} threads: **{peer:.0f} s**: "
        + ", ".join(
            f"{run['seconds']:.0f}{'' if run['reached'] else ' (given up)'} with {run['trials']} trials"
            for run in (run["peer"] for run in runs)
        )
        + f"; samples per second {', '.join(f'{name}: {rate:,.0f}' for name, rate in rates.items())}",
    ]
    for precision in ("float32", "bfloat16"):
        mine = [run[precision] for run in runs]
        median = statistics.median(run["seconds"] for run in mine)
        lines.append(
            f"- ours, {precision} (`hpsearch run`, all of it): **{median:.0f} s**, {peer / median:.1f} × as fast: "
            + ", ".join(f"{run['seconds']:.0f}{'' if _reached(run, size) else ' (not reached)'}" for run in mine)
        )
        for seed, run in enumerate(mine):
            winner = f"{run['best'].value:.4f} with {json.dumps(run['best'].params)}" if run["best"] else "none"
            flags = "; ".join(run["flags"]) or "none"
            lines.append(f"  - seed {seed}: {'; '.join(run['stages'])}; best {winner}; flags on lr: {flags}")
        lines += [f"    - {text}" for text in mine[0]["evidence"]]
    return "\n".join(lines)


def _reached(run: dict[str, Any], size: Size) -> bool:
    return run["best"] is not None and run["best"].value >= size.target
