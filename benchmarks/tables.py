"""Tabulated learning curves of real trainings: val_accuracy and val_loss per epoch over lr × reg, with several seeds.

    python -m benchmarks.tables --make digits     # train and write benchmarks/curves/digits.npz; seconds to minutes
    python -m benchmarks.tables                   # what is there

A search simulated on a table costs microseconds per epoch and meets what real searches meet: noise of seeds and of the
validation split, curves that cross, a cliff beyond which trials diverge, a parameter that hardly matters. Like the
benchmarks tabulated by Klein & Hutter ("Tabular benchmarks for joint architecture and hyperparameter optimization",
2019), but of our own packs and with the diverging region kept.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "curves"  # not "tables": type checkers take such a folder for this module
CIFAR10 = Path(__file__).parents[1].parent / "shared" / "data" / "cifar10"
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Recipe:
    """How a table is made.

    Attributes:
        lr: exponents of 10 of the first and the last value.
        reg: the same of the L2 strength.
        n_lr, n_reg: values on each axis, equally far apart in the logarithm.
        document: of the objective, without lr and reg.
        width: trials per pack.
    """

    title: str
    lr: tuple[float, float]
    reg: tuple[float, float]
    document: dict[str, Any]
    n_lr: int = 29
    n_reg: int = 15
    seeds: int = 5
    epochs: int = 27
    width: int = 64


RECIPES = {
    "digits": Recipe(
        "MLP 64–50–10 on digits: 1,078 training and 719 validation images",
        lr=(-6, 1),
        reg=(-5, 2),
        document={"data": {"source": "digits", "validation": 719}},
    ),
    "mnist1d": Recipe(
        "MLP 40–50–10 on MNIST-1D: 4,000 training and 1,000 validation samples",
        lr=(-6, 1),
        reg=(-6, 1),
        document={"data": {"source": "npz", "path": "", "validation": 1000}},
    ),
    "cifar10": Recipe(
        "MLP 3072–50–10 on CIFAR-10: 4,000 training and 2,000 validation images",
        lr=(-8, -1),
        reg=(-2, 5),
        document={"data": {"source": "parquet", "path": str(CIFAR10), "validation": 2000, "train": 4000}},
        seeds=3,
        epochs=16,
        width=32,
    ),
}


@dataclass(frozen=True)
class Table:
    """Learning curves on a grid of lr × reg.

    Attributes:
        lr: (L,), ascending, equally far apart in the logarithm.
        reg: (R,), the same.
        val_accuracy: (L, R, S, E), in [0, 1]; NaN from the epoch on in which the trial diverged.
        val_loss: the same shape, NaN in the same places.
        plain_seconds: per epoch of one trial in a plain PyTorch loop on one thread, evaluation included.
        pack_seconds: per epoch of one trial in a pack on one thread.
    """

    name: str
    lr: Floats
    reg: Floats
    val_accuracy: Floats
    val_loss: Floats
    plain_seconds: float
    pack_seconds: float

    @property
    def n_seeds(self) -> int:
        return self.val_accuracy.shape[2]

    @property
    def n_epochs(self) -> int:
        return self.val_accuracy.shape[3]

    def curve(self, lr: float, reg: float, seed: int, metric: str = "val_accuracy") -> Floats:
        """(E,): the metric per epoch, bilinear in the logarithms of lr and reg.

        A trial diverges where the nearest cell of the grid does, NaN from there on; cells that diverged are left out
        of the mean of the others. Beyond the grid the nearest place on its edge counts.

        Args:
            lr: > 0.
            reg: ≥ 0.
            seed: which of the tabulated ones; 0 to S − 1.
            metric: ``val_accuracy`` or ``val_loss``.
        """
        return self._interpolated(self._values(metric)[:, :, seed], lr, reg)

    def mean(self, lr: float, reg: float) -> Floats:
        """(E,): mean accuracy over the seeds; one that diverged counts as none right."""
        curves = [self.curve(lr, reg, seed) for seed in range(self.n_seeds)]
        mean: Floats = np.nan_to_num(np.stack(curves)).mean(0)
        return mean

    @cached_property
    def best(self) -> tuple[float, float, float]:
        """lr, reg and mean accuracy of the cell that is best after the last epoch."""
        final = np.nan_to_num(self.val_accuracy[..., -1]).mean(2)
        i, j = np.unravel_index(int(final.argmax()), final.shape)
        return float(self.lr[i]), float(self.reg[j]), float(final[i, j])

    def _values(self, metric: str) -> Floats:
        if metric not in ("val_accuracy", "val_loss"):
            raise ValueError(f"the tables have val_accuracy and val_loss, not {metric!r}")
        values: Floats = getattr(self, metric)
        return values

    def _interpolated(self, values: Floats, lr: float, reg: float) -> Floats:
        i, u = _place(self.lr, lr)
        j, v = _place(self.reg, reg)
        corners = values[i : i + 2, j : j + 2]  # 2, 2, E
        weights = np.outer([1 - u, u], [1 - v, v])[..., None] * ~np.isnan(corners)
        total = weights.sum((0, 1))
        with np.errstate(invalid="ignore"):
            curve: Floats = (weights * np.nan_to_num(corners)).sum((0, 1)) / total
        return np.where(np.isnan(corners[round(u), round(v)]), np.nan, curve)


def _place(axis: Floats, value: float) -> tuple[int, float]:
    """Index of the cell below and the share of the way to the next, in the logarithm, held inside the axis."""
    span = math.log(axis[-1] / axis[0])
    place = math.log(max(value, float(axis[0])) / axis[0]) / span * (len(axis) - 1)
    place = min(place, len(axis) - 1.0)
    below = min(int(place), len(axis) - 2)
    return below, place - below


@lru_cache
def load(name: str) -> Table:
    """The table of a data set: ``digits``, ``mnist1d`` or ``cifar10``."""
    if name not in RECIPES:
        raise ValueError(f"no table {name!r}: there are {', '.join(RECIPES)}")
    with np.load(FOLDER / f"{name}.npz") as archive:
        arrays = {key: archive[key].astype(np.float64) for key in archive.files}
    seconds = {key: float(arrays.pop(key)) for key in ("plain_seconds", "pack_seconds")}
    return Table(name, **arrays, **seconds)


def make(name: str) -> Path:
    """Train the grid of one data set in packs and write its table."""
    import torch

    from hpsearch.objective import TrainObjective
    from hpsearch.training import load_dataset

    torch.set_num_threads(1)
    recipe = RECIPES[name]
    axes = {
        "lr": np.logspace(*recipe.lr, recipe.n_lr),
        "reg": np.logspace(*recipe.reg, recipe.n_reg),
    }
    with _document(name) as document:
        objective = TrainObjective.model_validate(document)
        dataset = load_dataset(objective, study_seed=0)
        values = _train(recipe, objective, dataset, axes)
        seconds = _seconds(recipe, document)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.npz"
    accuracy, loss = values["val_accuracy"].astype(np.float32), values["val_loss"].astype(np.float16)
    np.savez_compressed(path, **axes, val_accuracy=accuracy, val_loss=loss, **seconds)
    return path


@contextmanager
def _document(name: str) -> Iterator[dict[str, Any]]:
    document = {"kind": "train", "batch_size": 100, **RECIPES[name].document}
    if name != "mnist1d":
        yield document
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "mnist1d.npz")
        np.savez(path, **mnist1d())
        yield {**document, "data": {**document["data"], "path": path}}


def mnist1d() -> dict[str, NDArray[Any]]:
    """The 5,000 samples of MNIST-1D (Greydanus & Kobak, "Scaling down deep learning with MNIST-1D", ICML 2024)."""
    from mnist1d.data import get_dataset_args, make_dataset  # of the extra ``bench``

    data = make_dataset(get_dataset_args())
    return {
        "x": np.concatenate([data["x"], data["x_test"]]).astype(np.float32),
        "y": np.concatenate([data["y"], data["y_test"]]).astype(np.int64),
    }


def _train(recipe: Recipe, objective: Any, dataset: Any, axes: dict[str, Floats]) -> dict[str, Floats]:
    """The curves of the grid, seed by seed, lr by lr, so that packs lose few of their members to divergence."""
    from hpsearch.training import Member, Pack

    shape = (recipe.n_lr, recipe.n_reg, recipe.seeds, recipe.epochs)
    values = {name: np.full(shape, np.nan) for name in ("val_accuracy", "val_loss")}
    cells = [(i, j, s) for i in range(recipe.n_lr) for s in range(recipe.seeds) for j in range(recipe.n_reg)]
    for first in range(0, len(cells), recipe.width):
        chosen = cells[first : first + recipe.width]
        members = [
            Member(objective.with_params({"lr": float(axes["lr"][i]), "reg": float(axes["reg"][j])}), seed)
            for i, j, seed in chosen
        ]
        pack = Pack(members, dataset, data_seed=0, epochs=recipe.epochs, diagnose=False)
        while pack.epoch < recipe.epochs and pack.live:
            for result in pack.train_epoch():
                if result.diverged is None:
                    for name, array in values.items():
                        array[chosen[result.member]][result.epoch - 1] = result.metrics[name]
        print(f"{first + len(chosen)} of {len(cells)} trials", end="\r", flush=True)
    return values


def _seconds(recipe: Recipe, document: dict[str, Any]) -> dict[str, float]:
    """Of one epoch of one trial, in turn, the median of five rounds."""
    from benchmarks.workloads import Bench, Workload, mlp

    bench = Bench(Workload(recipe.title, document, 2, mlp, (recipe.width,)), "cpu")
    rates = np.array([(bench.plain(0.5), bench.pack(recipe.width, 1.0)) for _ in range(5)])
    plain, pack = 1 / (2 * np.median(rates, axis=0))
    return {"plain_seconds": float(plain), "pack_seconds": float(pack)}


def describe(table: Table) -> str:
    lr, reg, accuracy = table.best
    final = table.val_accuracy[..., -1]
    spread = np.nanmean(np.nanstd(final, axis=2, ddof=1)[np.nanmean(final, axis=2) > 0.9 * accuracy])
    return (
        f"{RECIPES[table.name].title}\n"
        f"  lr {table.lr[0]:.0e} to {table.lr[-1]:.0e}, reg {table.reg[0]:.0e} to {table.reg[-1]:.0e}, "
        f"{table.n_seeds} seeds, {table.n_epochs} epochs, {np.isnan(final).mean():.0%} diverged\n"
        f"  best mean val_accuracy {accuracy:.4f} at lr {lr:.2g}, reg {reg:.2g}; seeds differ by {spread:.4f} there\n"
        f"  an epoch takes {table.plain_seconds * 1e3:.2f} ms plain, {table.pack_seconds * 1e3:.2f} ms in a pack"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Tabulated learning curves.")
    parser.add_argument("--make", metavar="NAME", help=f"train and write one of {', '.join(RECIPES)}")
    args = parser.parse_args()
    if args.make is not None and args.make not in RECIPES:
        parser.error(f"no table {args.make!r}: there are {', '.join(RECIPES)}")
    if args.make:
        start = time.perf_counter()
        path = make(args.make)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB, {time.perf_counter() - start:.0f} s")
    for name in [args.make] if args.make else RECIPES:
        print(describe(load(name)))


if __name__ == "__main__":
    main()
