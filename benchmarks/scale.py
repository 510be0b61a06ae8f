"""What one server carries: reports a second and their 99th percentile against the number of workers.

    python -m benchmarks.scale                     # about three minutes
    python -m benchmarks.scale --write             # also into RESULTS.md

The server, its PostgreSQL and the workers of :mod:`benchmarks.load` in real time, one number of workers after the
other: each reports a step of its trial once in ``--pace`` seconds, and what is late is sent at once, until the time is
over. Beside it what the calls took of the server's processor time, which is what they need of a core of their own.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.load import Seen, load, lost, served
from benchmarks.verdicts import write

NUMBERS = (1, 10, 100, 250, 500, 1000)


@dataclass(frozen=True)
class Point:
    """One number of workers.

    Attributes:
        cpu: seconds of processor time that the server took while they came and worked.
    """

    n: int
    seen: Seen
    cpu: float

    def row(self, pace: float, seconds: float) -> str:
        """A line of the table; ``seconds``: for how long it was measured."""
        calls = sum(map(len, self.seen.seconds.values()))
        reports = self.seen.seconds["report"]
        cells = [f"{self.n:,}", f"{self.n / pace:,.0f}", f"{len(reports) / seconds:,.0f}"]
        cells.append(f"{calls / seconds:,.0f}")
        for call in ("report", "lease", "finish"):
            took = self.seen.seconds[call]
            cells.append(f"{1000 * statistics.median(took):,.0f}" if took else "")
            cells.append(f"{1000 * statistics.quantiles(took, n=100)[98]:,.0f}" if len(took) > 20 else "")
        cells.append(f"{1000 * self.cpu / self.seen.n_calls:.1f}" if self.seen.n_calls else "")
        return f"| {' | '.join(cells)} |"


def processor_seconds(pid: int) -> float:
    """What a process has taken so far, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(options: argparse.Namespace) -> tuple[list[Point], tuple[int, int]]:
    """The curve, and what was lost over all of it."""
    points, every = [], Seen()
    with served() as server:
        for n in options.numbers:
            options.workers = n
            before = processor_seconds(server.pid)
            seen, _ = load(server.address, server.token, server.pid, options)
            points.append(Point(n, seen, processor_seconds(server.pid) - before))
            print(points[-1].row(options.pace, 60 * options.minutes), flush=True)
            every.add(seen)
        return points, lost(server.url, server.boss, every)


def section(points: list[Point], missing: tuple[int, int], options: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    faults = {text: n for point in points for text, n in point.seen.faults.items()}
    said = ", ".join(f"{text}: {n}" for text, n in sorted(faults.items())) or "none"
    lines = [
        "## Scale",
        "",
        "<!-- scale: written by benchmarks/scale.py -->",
        f"`python -m benchmarks.scale --pace {options.pace:g} --write`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} "
        f"cores ({platform.machine()}) for clients, one server and PostgreSQL together, load average "
        f"{os.getloadavg()[1]:.1f}; {60 * options.minutes:g} s for each number of workers, a report each "
        f"{options.pace:g} s. Times in milliseconds.",
        "",
        "| workers | reports due/s | reports/s | calls/s | report: median | p99 | lease: median | p99 | finish: median "
        "| p99 | server's CPU per call |",
        "|" + "---|" * 11,
        *(point.row(options.pace, 60 * options.minutes) for point in points),
        "",
        f"Lost: {missing[0]} steps and {missing[1]} results of those answered. Unexpected answers: {said}.",
        "<!-- scale: end -->",
    ]
    return "\n".join(lines)


def main() -> int:
    """Status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, nargs="+", default=NUMBERS, help="of workers")
    parser.add_argument("--minutes", type=float, default=0.25, help="for each number")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds between two reports of a worker")
    parser.add_argument("--processes", type=int, default=2, help="of clients")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    options.cut = True
    points, missing = measure(options)
    text = section(points, missing, options)
    print(text)
    if options.write:
        write(text)
    return 1 if any(missing) else 0


if __name__ == "__main__":
    sys.exit(main())
