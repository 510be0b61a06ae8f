"""Are border flags right? Random studies on surfaces whose optimum is known, and on tabulated real trainings.

    python -m benchmarks.borders [--seed 2026] [--each 240] [--write]

The rule was developed on the surfaces of seed 1. The table is made on surfaces of another seed, drawn once and never
tuned on. The boxes of the real ones are new as well, but they lie on the same three tables.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.stats import beta

from benchmarks import surfaces_real
from benchmarks.border_rules import UP, Border, Trials, ax, naive, skore
from benchmarks.surfaces_synthetic import FAMILIES, Floats, Surface, surfaces
from hpsearch.search.borders import FlagVerdict, border_flags, worth_extending
from hpsearch.space import FloatParam, Space
from hpsearch.trial import Trial, TrialState

N_TRIALS = 60
RULES = ("ours", "ours, likely", "ours, extends", "naive", "Ax", "skore")
RESULTS = Path(__file__).parent / "RESULTS.md"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Count:
    """How often something happened, of how many."""

    hits: int = 0
    n: int = 0

    def add(self, hit: bool) -> None:
        self.hits, self.n = self.hits + hit, self.n + 1

    def __str__(self) -> str:
        """The share with its 95 % interval (Clopper & Pearson, 1934)."""
        if not self.n:
            return "—"
        low = beta.ppf(0.025, self.hits, self.n - self.hits + 1) if self.hits else 0.0
        high = beta.ppf(0.975, self.hits + 1, self.n - self.hits) if self.hits < self.n else 1.0
        return f"{self.hits}/{self.n} = {self.hits / self.n:.1%} ({low:.0%}–{high:.0%})"


@dataclass
class Table:
    """Rows by name, in the order in which they were first needed; a count per rule."""

    rows: dict[str, dict[str, Count]] = field(default_factory=dict)

    def add(self, row: str, found: dict[str, set[Border]], hit: Callable[[set[Border]], bool]) -> None:
        counts = self.rows.setdefault(row, {rule: Count() for rule in RULES})
        for rule, borders in found.items():
            counts[rule].add(hit(borders))

    def markdown(self, rows: list[str]) -> str:
        lines = ["| 60 random trials | " + " | ".join(RULES) + " |", "|---" * (len(RULES) + 1) + "|"]
        lines += [
            f"| {row} | " + " | ".join(str(self.rows[row][rule]) for rule in RULES) + " |"
            for row in rows
            if row in self.rows
        ]
        return "\n".join(lines)


def study_of(surface: Surface, *, seed: int) -> Trials:
    """A random study of a surface."""
    return trials_of(surface, *surface.run(N_TRIALS, seed))


def trials_of(surface: Surface, places: Floats, values: Floats) -> Trials:
    """Trials at places (n, d) of logarithmic ranges of the surface's widths."""
    space: Space = {
        f"p{j}": FloatParam(type="float", low=1e-6, high=10 ** (decades - 6), log=True)
        for j, decades in enumerate(surface.decades)
    }
    exponents = places * np.array(surface.decades) - 6
    return Trials(space, _trials([dict(zip(space, row, strict=True)) for row in (10**exponents).tolist()], values))


def _trials(params: list[dict[str, float]], values: Floats) -> tuple[Trial, ...]:
    return tuple(_trial(i, p, float(v)) for i, (p, v) in enumerate(zip(params, values, strict=True)))


def _trial(number: int, params: dict[str, float], value: float) -> Trial:
    """A finished trial; NaN: it diverged."""
    state = TrialState.DIVERGED if math.isnan(value) else TrialState.COMPLETED
    kept = None if math.isnan(value) else value
    return Trial(number, "coarse", state, dict(params), kept, 1, None, 1, "w", EPOCH, EPOCH, EPOCH)


@dataclass(frozen=True)
class Said:
    """What the rules say of one study.

    Attributes:
        flagged: borders by rule; of ours all, whatever the verdict.
        widen, unstable: the same with that verdict; the other rules have none but to widen.
    """

    flagged: dict[str, set[Border]]
    widen: dict[str, set[Border]]
    unstable: dict[str, set[Border]]


def ask(study: Trials, *, seed: int) -> Said:
    """What every rule says of a study."""
    flags = border_flags("coarse", study.space, study.trials, UP)
    likely = [f for f in flags if f.level != "watch"]
    extends = worth_extending("coarse", study.space, study.trials, UP)
    ours = {"ours": flags, "ours, likely": likely, "ours, extends": extends}
    peers = {"naive": naive(study), "Ax": ax(study, seed=seed), "skore": skore(study)}

    def with_verdicts(*verdicts: FlagVerdict) -> dict[str, set[Border]]:
        return {rule: {(f.parameter, f.side) for f in found if f.verdict in verdicts} for rule, found in ours.items()}

    unstable = with_verdicts(FlagVerdict.UNSTABLE_EDGE)
    return Said(with_verdicts(*FlagVerdict) | peers, with_verdicts(FlagVerdict.WIDEN) | peers, unstable)


def _synthetic(table: Table, surface: Surface, *, seed: int) -> None:
    said = ask(study_of(surface, seed=seed), seed=seed + surface.name)
    if surface.kind == "flat":
        table.add(FLAT, said.flagged, bool)
    elif surface.kind == "central":
        table.add(CENTRAL, said.flagged, bool)
    elif surface.target is not None:
        border = (f"p{surface.target[0]}", "high" if surface.target[1] > 0 else "low")
        _targeted(table, surface, border, said)


def _targeted(table: Table, surface: Surface, border: Border, said: Said) -> None:
    """Rows about surfaces on which one border is in question."""

    def right(borders: set[Border]) -> bool:
        return border in borders

    seen = surface.cost > 2 * surface.sigma
    if surface.kind == "near":
        table.add(NEAR.format(surface.percent_inside), said.widen, right)
    elif surface.kind == "far cliff":
        table.add(FAR_CLIFF, said.flagged, right)
    elif surface.kind == "cliff" and seen:
        table.add(CLIFF, said.unstable, right)
        table.add(CLIFF_WIDEN, said.widen, right)
    elif surface.kind == "beyond" and seen:
        far = surface.decades_beyond
        distance = DISTANCES[0 if far < 0.5 else 1 if far < 1 else 2]
        plural = "s" if surface.n_params > 1 else ""
        for row in (BEYOND, surface.family, f"{surface.n_params} parameter{plural}", distance):
            table.add(row, said.widen, right)
        inner = {
            (f"p{j}", side) for j, u in enumerate(surface.best_inside) if 0.2 <= u <= 0.8 for side in ("low", "high")
        }
        table.add(OTHER, said.widen, lambda borders: bool(borders & inner))
    elif surface.kind == "beyond":
        table.add(CHEAP, said.widen, right)


def _real(table: Table, box: surfaces_real.Box, *, seed: int) -> None:
    params, values = box.run(N_TRIALS, seed)
    study = Trials(box.space, _trials(params, values))
    if len(study.completed()) < 2:
        return
    said = ask(study, seed=seed + box.number)
    border, gain = max(box.gains.items(), key=lambda item: item[1])
    name = box.table.name
    if box.is_central:
        table.add(f"{name}: best in the central 60 %, however little better: flagged", said.flagged, bool)
    if gain > 2 * box.sigma:
        table.add(f"{name}: best beyond: its border flagged `widen`", said.widen, lambda borders: border in borders)
        table.add(f"real, {learnt(study)}", said.widen, lambda borders: border in borders)
    if gain <= 0:
        table.add(f"{name}: nothing to gain beyond: some border flagged `widen`", said.widen, bool)
    if box.reaches_divergence:
        diverging = {("lr", "high")}
        table.add(f"{name}: lr reaches divergence: high lr flagged `widen`", said.widen, lambda b: bool(b & diverging))


def learnt(study: Trials) -> str:
    """Whether at least half of the trials completed with more than chance accuracy (10 classes)."""
    n = sum((t.value or 0.0) > 0.15 for t in study.completed())
    return "best beyond, half of the trials learnt" if n >= N_TRIALS / 2 else "best beyond, fewer learnt"


FLAT = "flat: false alarm (to reach: ≤ 5 % at likely)"
CENTRAL = "optimum in the central 60 %: flagged (≤ 3 %)"
BEYOND = "optimum beyond, costs > 2 sd: right border `widen` (≥ 90 %)"
CLIFF = "best against a cliff: `unstable_edge` (≥ 90 %)"
CLIFF_WIDEN = "best against a cliff: `widen`"
FAR_CLIFF = "optimum in the central 60 % before a cliff: cliff flagged"
OTHER = "optimum beyond: another parameter, best in its central 60 %, `widen`"
CHEAP = "optimum beyond, costs less: right border `widen`"
NEAR = "optimum {} % of the range before the border: `widen`"
DISTANCES = ("¼ to ½ decade", "½ to 1 decade", "1 to 2 decades")
MAIN = [FLAT, CENTRAL, BEYOND, CLIFF, CLIFF_WIDEN, FAR_CLIFF, OTHER, CHEAP, *(NEAR.format(p) for p in (0, 5, 10, 15))]


def report(table: Table) -> str:
    """The tables in Markdown."""
    detail = [*FAMILIES, "1 parameter", *(f"{n} parameters" for n in range(2, 7)), *DISTANCES]
    real = [row for row in table.rows if row.split(":")[0] in surfaces_real.names()]
    real += sorted(row for row in table.rows if row.startswith("real, "))
    parts = [
        ("Synthetic surfaces", MAIN),
        ("Optimum beyond, costs > 2 sd: right border `widen`, in detail", detail),
        ("Tabulated real trainings", real),
    ]
    return "\n\n".join(f"**{title}**\n\n{table.markdown(rows)}" for title, rows in parts)


def timing() -> str:
    """How long the analysis of a large stage takes, on the processor; the median of three."""
    rng = np.random.default_rng(0)
    parts = []
    for n_params in (2, 6, 12):
        places = rng.random((10_000, n_params))
        surface = Surface(0, "flat", "bowl", (0.9,) * n_params, (1.0,) * n_params, (4.0,) * n_params, 0.1, 0.5)
        values = surface.mean(places) + surface.sigma * rng.standard_normal(10_000)
        study = trials_of(surface, places, values)
        seconds = []
        for _ in range(3):
            start = time.process_time()
            border_flags("coarse", study.space, study.trials, UP)
            seconds.append(time.process_time() - start)
        parts.append(f"{sorted(seconds)[1]:.2f} s with {n_params} parameters")
    return f"The whole analysis of a stage of 10,000 trials, processor time: {', '.join(parts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2026, help="of the surfaces and studies")
    parser.add_argument("--each", type=int, default=240, help="surfaces of each of the six kinds")
    parser.add_argument("--boxes", type=int, default=100, help="boxes laid over each table of real trainings")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    args = parser.parse_args()
    start, table = time.process_time(), Table()
    for surface in surfaces(args.seed, args.each):
        _synthetic(table, surface, seed=args.seed)
    for name in surfaces_real.names():
        for box in surfaces_real.boxes(name, args.boxes, args.seed):
            _real(table, box, seed=args.seed)
    text = f"{report(table)}\n\n{timing()}"
    print(text)
    if args.write:
        write(f"{head(time.process_time() - start, args)}\n\n{text}")


def head(seconds: float, args: argparse.Namespace) -> str:
    machine = f"{os.cpu_count()} × {platform.machine()} CPU, numpy {np.__version__}, 1 thread"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {seconds:.0f} s of processor time; "
        "`OMP_NUM_THREADS=1 python -m benchmarks.borders --write`. "
        f"{6 * args.each} synthetic surfaces and {args.boxes} boxes on each of {len(surfaces_real.names())} tables "
        f"(seed {args.seed}; the rule was developed on seed 1 and never tuned on this one), one study of {N_TRIALS} "
        "random trials on each. The boxes are new, too, but lie on the tables that the rule was developed with. "
        "Shares with exact 95 % intervals."
    )


def write(text: str) -> None:
    """Replace what stands between the markers in RESULTS.md, or add a section."""
    begin, end = "<!-- borders: written by benchmarks/borders.py -->", "<!-- /borders -->"
    block = f"{begin}\n{text}\n{end}"
    old = RESULTS.read_text()
    if begin in old:
        before, rest = old.split(begin, 1)
        RESULTS.write_text(before + block + rest.split(end, 1)[1])
    else:
        RESULTS.write_text(f"{old.rstrip()}\n\n## Borders\n\n{block}\n")


if __name__ == "__main__":
    main()
