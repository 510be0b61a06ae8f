"""What our search is worth: the same objective and budget for ours, Optuna, Ray Tune and Syne Tune.

    python -m benchmarks.search                   # (a) and (b) on all tables, minutes
    python -m benchmarks.search digits --runs 24  # one table
    python -m benchmarks.search --write           # also into RESULTS.md
    python -m benchmarks.search --cifar10         # (c), for real: minutes on a machine with nothing else to do

(a) ranges that hold the optimum; (b) ranges that miss it by one or two decades. Simulated on tabulated curves of real
trainings (:mod:`benchmarks.tables`) on one core each: ours is the service's own engine, from the study's document to
its winner, the others are driven through their own samplers, pruners and schedulers with their defaults. All are
judged by the same number: the mean accuracy over all tabulated seeds, after the full number of epochs, at the lr and
reg that they recommend; *regret* is what that lacks to the best cell of the table.

Same budget of epochs: 40 full trainings for everybody. Same wall-clock: the time that those take in a plain loop, for
ours at the plain loop's cost, and in packs at the measured cost of packs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks import cifar10
from benchmarks.simulation import Found, Ranges, ServiceRun, peers, run_peer
from benchmarks.tables import RECIPES, Table, load
from hpsearch.spec import StudySpec, parse_study

RESULTS = Path(__file__).parent / "RESULTS.md"
FIRST_RUN = 2000
"""Runs before it are those that the spec below and the engine's rules were chosen with."""
FULL_TRAININGS = 40
"""The budget, in trainings to the last epoch."""
WIDTH = 64
"""Trials that our worker trains at a time in packs; a stage that has fewer trains fewer."""
OURS = "ours"
OURS_PLAIN = "ours, plain loop"
OURS_PACKS = "ours, packs"
OFF = ("lr too low", "lr too high", "reg too low", "reg too high")


@dataclass(frozen=True)
class Case:
    """One run of everybody.

    Attributes:
        off: how the ranges miss the optimum, one of :data:`OFF`; None: they hold it.
        decades: by how much.
    """

    table: str
    run: int
    off: str | None = None
    decades: int = 0


@dataclass(frozen=True)
class Outcome:
    """How everybody did in a case: contender → true accuracy of what it recommends, 0 for nothing."""

    case: Case
    ranges: Ranges
    values: dict[str, float]
    found: dict[str, Found]


# -- ranges -----------------------------------------------------------------------------------------------------------


def good_region(table: Table) -> dict[str, tuple[float, float]]:
    """Least and largest lr and reg of the cells that no experiment tells from the best.

    They are within twice the standard deviation of seeds near the best cell.
    """
    final = np.nan_to_num(table.val_accuracy[..., -1])
    mean = final.mean(2)
    near = mean > 0.95 * mean.max()
    noise = float(final[near].std(1, ddof=1).mean())
    good = mean >= mean.max() - 2 * noise
    axes = {"lr": (table.lr, good.any(1)), "reg": (table.reg, good.any(0))}
    return {name: (float(axis[found].min()), float(axis[found].max())) for name, (axis, found) in axes.items()}


def ranges_of(case: Case, table: Table) -> Ranges:
    """Where the searches of a case may sample; drawn by its run's number.

    lr over 3 decades, as in the lecture, and reg over 4; the middle of the good region anywhere in their central 60 %.
    Where a parameter is off, its range of as many decades ends (or begins) one or two decades before the good region.
    """
    rng = np.random.default_rng([case.run, sorted(RECIPES).index(case.table)])
    found = {}
    for name, decades in (("lr", 3.0), ("reg", 4.0)):
        low, high = np.log10(good_region(table)[name])
        start = (low + high) / 2 - decades * rng.uniform(0.2, 0.8)
        if case.off == f"{name} too low":
            start = low - case.decades - decades
        elif case.off == f"{name} too high":
            start = high + case.decades
        found[name] = (float(10**start), float(10 ** (start + decades)))
    return Ranges(**found)


def matters(table: Table, off: str) -> bool:
    """Whether missing the optimum so costs anything that can be measured: a reg too low, for one, may do no harm."""
    name = off.split(maxsplit=1)[0]
    low, high = good_region(table)[name]
    axis = table.lr if name == "lr" else table.reg
    outside = axis < low / 10 if off.endswith("low") else axis > high * 10
    return bool(outside.any())


# -- ours -------------------------------------------------------------------------------------------------------------


def study(ranges: Ranges, *, epochs: int, budget: int, seed: int, stop: dict[str, Any]) -> StudySpec:
    """What docs/search.md recommends, for a budget in epochs.

    A fifth of it coarse, at a quarter of the epochs of a full training; then full trainings by TPE in the narrowed
    ranges, ended early below the median; and a fifth for two finalists with fresh seeds.

    Chosen among some fifty by results on all tables, with runs before :data:`FIRST_RUN`. A coarse stage that is
    extended leaves less to what follows.

    Args:
        epochs: of a full training.
        budget: epochs in all that the stages are sized for.
        seed: of the study.
        stop: when the study ends at the latest.
    """
    short = max(1, round(epochs / 4))
    stages = [
        {"name": "coarse", "trials": round(0.2 * budget / short), "epochs": short, "on_border": "extend"},
        {
            "name": "full",
            "trials": round(budget / epochs),
            "epochs": epochs,
            "sampler": {"name": "tpe", "n_startup_trials": 5},
            "early_stopping": {"name": "median"},
        },
        {"name": "confirm", "top": 2, "seeds": max(2, round(0.2 * budget / epochs / 2)), "epochs": epochs},
    ]
    return parse_study(
        {
            "name": "search",
            "objective": {"kind": "external"},
            "metric": {"name": "val_accuracy", "direction": "maximize"},
            "space": {
                name: {"type": "float", "low": low, "high": high, "log": True}
                for name, (low, high) in (("lr", ranges.lr), ("reg", ranges.reg))
            },
            "stages": stages,
            "seed": seed,
            "stop": stop,
        }
    )


def run_ours(ranges: Ranges, table: Table, *, seed: int) -> dict[str, Found]:
    """Our service with the same epochs, with the same time at a plain loop's cost, and with the same time in packs."""
    epochs = table.n_epochs
    budget = FULL_TRAININGS * epochs
    seconds = budget * table.plain_seconds
    packed = round(seconds / table.pack_seconds)

    def one(budget: int, stop: dict[str, Any], width: int) -> Found:
        spec = study(ranges, epochs=epochs, budget=budget, seed=seed, stop=stop)
        return ServiceRun(spec, table, width).run()

    return {
        OURS: one(budget, {"epochs": budget}, 1),
        OURS_PLAIN: one(budget, {"seconds": seconds}, 1),
        OURS_PACKS: one(packed, {"seconds": seconds}, WIDTH),
    }


# -- a case -----------------------------------------------------------------------------------------------------------


def play(case: Case, *, others: bool = True) -> Outcome:
    """Everybody's run of one case."""
    table = load(case.table)
    ranges = ranges_of(case, table)
    found = run_ours(ranges, table, seed=case.run)
    if others:
        for name, make in peers(ranges, epochs=table.n_epochs, seed=case.run).items():
            found[name] = run_peer(
                make(), table, budget=FULL_TRAININGS * table.n_epochs, epochs=table.n_epochs, seed=case.run
            )
    values = {name: float(table.mean(*f.point)[-1]) if f.point else 0.0 for name, f in found.items()}
    return Outcome(case, ranges, values, found)


def cases(tables: Iterable[str], runs: int, *, part: str) -> list[Case]:
    """Of part (a) ``runs`` per table; of (b) as many, every way to be off in turn."""
    found = []
    for name in tables:
        if "a" in part:
            found += [Case(name, run) for run in range(FIRST_RUN, FIRST_RUN + runs)]
        if "b" in part:
            ways = [(off, decades) for decades in (1, 2) for off in OFF if matters(load(name), off)]
            found += [Case(name, run, *ways[run % len(ways)]) for run in range(FIRST_RUN, FIRST_RUN + runs)]
    return found


def play_all(todo: Sequence[Case], *, jobs: int, others: bool = True) -> list[Outcome]:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to be started
    if jobs == 1:
        return [play(case, others=others) for case in todo]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(play, todo, chunksize=1))


# -- tables -----------------------------------------------------------------------------------------------------------


def quartiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2%}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"**{middle:.2%}** ({low:.2%} to {high:.2%})"


def share(hits: int, n: int) -> str:
    """With its Clopper–Pearson interval of 95 %."""
    interval = binomtest(hits, n).proportion_ci()
    return f"{hits} of {n} = {hits / n:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def regret_table(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[str]:
    """Contenders × tables: median regret and quartiles."""
    tables = list(dict.fromkeys(o.case.table for o in outcomes))
    lines = [f"| | {' | '.join(tables)} |", f"|---|{'---|' * len(tables)}"]
    for name in names:
        cells = [
            quartiles([load(table).best[2] - o.values[name] for o in outcomes if o.case.table == table])
            for table in tables
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def wins(outcomes: Sequence[Outcome], ours: str, others: Sequence[str]) -> int:
    """Runs in which ours ends better than every other."""
    return sum(o.values[ours] > max(o.values[name] for name in others) for o in outcomes)


def win_table(outcomes: Sequence[Outcome], ours: Sequence[str], others: Sequence[str]) -> list[str]:
    lines = [f"| runs in which ours ends better | {' | '.join(ours)} |", f"|---|{'---|' * len(ours)}"]
    for name in others:
        cells = [share(wins(outcomes, our, [name]), len(outcomes)) for our in ours]
        lines.append(f"| than {name} | {' | '.join(cells)} |")
    every = [share(wins(outcomes, our, others), len(outcomes)) for our in ours]
    lines.append(f"| **than every one of them** | {' | '.join(f'**{cell}**' for cell in every)} |")
    ways = sorted({(o.case.off or "", o.case.decades) for o in outcomes})
    for off, decades in ways if len(ways) > 1 else []:
        chosen = [o for o in outcomes if o.case.off == off and o.case.decades == decades]
        cells = [f"{wins(chosen, our, others)} of {len(chosen)}" for our in ours]
        lines.append(f"| every one, {off} by {decades} decade{'s' if decades > 1 else ''} | {' | '.join(cells)} |")
    return lines


def report(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    names = list(outcomes[0].values)
    ours = [name for name in names if name in (OURS, OURS_PLAIN, OURS_PACKS)]
    others = [name for name in names if name not in ours]
    lines: list[str] = []
    for part, title in (("a", "(a) Ranges that hold the optimum"), ("b", "(b) Ranges off by one or two decades")):
        chosen = [o for o in outcomes if (o.case.off is None) == (part == "a")]
        if not chosen:
            continue
        lines += [f"### {title}", ""]
        for budget, mine in (("Same epochs", [OURS]), ("Same wall-clock", [OURS_PLAIN, OURS_PACKS])):
            lines += [f"{budget}: median regret and quartiles.", ""]
            lines += [*regret_table(chosen, [*mine, *others]), ""]
        if others:
            lines += [*win_table(chosen, ours, others), ""]
    return "\n".join(lines)


def show_lost(outcomes: Sequence[Outcome]) -> None:
    """What ours did in the runs of (b) that it lost, and where it was worse than TPE in (a)."""
    for o in outcomes:
        others = {n: v for n, v in o.values.items() if not n.startswith(OURS)}
        rival = max(others.values(), default=1.0) if o.case.off else others.get("Optuna TPE", 1.0)
        if o.values[OURS] > rival or (o.case.off is None and o.values[OURS] >= rival):
            continue
        print(f"{o.case}: {o.values[OURS]:.4f} against {rival:.4f}; {o.ranges}, {o.found[OURS].point}")
        for key, value in o.found[OURS].notes.items():
            print(f"    {key}: {value}")


def write(text: str, name: str) -> None:
    """Put a part of this benchmark's section into RESULTS.md: ``search`` or ``search-cifar10``."""
    begin, end = f"<!-- {name}: written by benchmarks/search.py -->", f"<!-- /{name} -->"
    old = RESULTS.read_text()
    block = f"{begin}\n{text}\n{end}"
    if begin in old:
        head, rest = old.split(begin, 1)
        new = head + block + rest.split(end, 1)[1]
    elif "\n## Search\n" in old:
        head, rest = old.split("\n## Search\n", 1)
        own, heading, others = rest.partition("\n## ")
        new = f"{head}\n## Search\n{own.rstrip()}\n\n{block}\n{heading}{others}"
    else:
        new = f"{old.rstrip()}\n\n## Search\n\n{block}\n"
    RESULTS.write_text(new)


def head(command: str, seconds: float) -> str:
    machine = f"{os.cpu_count()} × {platform.machine()} CPU, load {os.getloadavg()[0]:.1f}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {seconds:.0f} s; `python -m benchmarks.search {command}`.\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--runs", type=int, default=24, help="per table and part")
    parser.add_argument("--part", choices=("a", "b", "ab"), default="ab")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--ours", action="store_true", help="without the others")
    parser.add_argument("--lost", action="store_true", help="print what ours did where it lost")
    parser.add_argument("--cifar10", action="store_true", help="(c) alone")
    parser.add_argument("--cap", type=float, default=300.0, help="of (c): seconds after which either is given up")
    parser.add_argument("--repeats", type=int, default=3, help="of (c): seeds")
    parser.add_argument("--small", action="store_true", help="of (c): a fifth of the data and a lower target")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(RECIPES):
        parser.error(f"no table {', '.join(sorted(unknown))}: there are {', '.join(RECIPES)}")
    start = time.perf_counter()
    if args.cifar10:
        size = cifar10.Size(train=8000, validation=1000, coarse=40, target=0.4) if args.small else cifar10.Size()
        text = f"### (c) The lecture's study on CIFAR-10\n\n{cifar10.compare(size, args.cap, args.repeats)}"
    else:
        todo = cases(args.tables or list(RECIPES), args.runs, part=args.part)
        outcomes = play_all(todo, jobs=args.jobs, others=not args.ours)
        text = report(outcomes)
    print(text)
    if args.lost and not args.cifar10:
        show_lost(outcomes)
    if args.write:
        command = "--cifar10 --write" if args.cifar10 else f"--runs {args.runs} --write"
        part = "search-cifar10" if args.cifar10 else "search"
        write(head(command, time.perf_counter() - start) + text, part)


if __name__ == "__main__":
    main()
