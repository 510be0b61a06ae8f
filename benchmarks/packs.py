"""Trials per second of packs against what people use today, on this machine, in one run.

    python -m benchmarks.packs                    # all workloads, some minutes
    python -m benchmarks.packs --quick            # seconds per workload, coarse
    python -m benchmarks.packs digits --json      # one workload
    python -m benchmarks.packs --results benchmarks/RESULTS.md

All contenders of a workload are measured in turn, round after round, and the median of the rounds is shown, so that
what else the machine does falls on all of them. Rates are of the whole machine: packs and plain loops (b) run in one
process per core, one thread each, at the same time. (a) is one plain loop with the best number of threads, (c) Optuna's
``n_jobs=cores``, (d) Ray Tune with one CPU per trial. The share is of the rate of 2048 × 2048 float32 matrix products
that the same processes reach at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import math
import multiprocessing as mp
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import RayTune, optuna_rate
from benchmarks.workloads import WORKLOADS, Bench, matmul_rate
from hpsearch.training.devices import prepare_process

PEERS = {
    "a": "plain loop, one at a time",
    "b": "plain loop, a process per core",
    "c": "Optuna n_jobs=cores",
    "d": "Ray Tune, a CPU per trial",
}


def _serve(pipe: Connection, name: str, device: str, barrier: Any) -> None:
    """One process of the crew: does what it is told, together with the others if told so."""
    prepare_process(1)
    bench = Bench(WORKLOADS[name], device)
    pipe.send(bench.flops())
    while (job := pipe.recv()) is not None:
        what, seconds, argument, together = job
        torch.set_num_threads(argument if what == "plain" else 1)
        if together:
            barrier.wait()
        match what:
            case "plain":
                rate = bench.plain(seconds)
            case "pack":
                rate = bench.pack(argument, seconds)
            case "optuna":
                rate = optuna_rate(bench, seconds, argument)
            case "matmul":
                rate = matmul_rate(seconds, device)
        pipe.send(rate)


class Crew:
    """One process per core with the workload loaded; on a GPU one process."""

    def __init__(self, name: str, device: str, size: int) -> None:
        context = mp.get_context("spawn")
        barrier = context.Barrier(size)
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(size):
            pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, name, device, barrier), daemon=True)
            process.start()
            self._pipes.append(pipe)
            self._processes.append(process)
        flops: list[float | None] = [pipe.recv() for pipe in self._pipes]
        self.flops = flops[0]

    def all(self, what: str, seconds: float, argument: int = 1) -> float:
        """Sum of the rates of all processes, working at the same time."""
        for pipe in self._pipes:
            pipe.send((what, seconds, argument, True))
        return float(sum(pipe.recv() for pipe in self._pipes))

    def one(self, what: str, seconds: float, argument: int) -> float:
        """Rate of the first process, with the others idle."""
        self._pipes[0].send((what, seconds, argument, False))
        return float(self._pipes[0].recv())

    def close(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # it died, and has said why on its standard error
                pipe.send(None)
        for process in self._processes:
            process.join()


@contextlib.contextmanager
def _crew(name: str, device: str, size: int) -> Iterator[Crew]:
    crew = Crew(name, device, size)
    try:
        yield crew
    finally:
        crew.close()


def measure(name: str, *, device: str, cores: int, seconds: float, rounds: int, ray: RayTune | str) -> dict[str, Any]:
    """All contenders of one workload; rates are trials per second of the whole machine."""
    workload = WORKLOADS[name]
    with _crew(name, device, cores if device == "cpu" else 1) as crew:
        widths = {width: crew.all("pack", seconds / 2, width) for width in workload.widths}
        best = max(widths, key=lambda width: widths[width])
        contenders: dict[str, Callable[[], float]] = {
            "pack": lambda: crew.all("pack", seconds, best),
            "matmul": lambda: crew.all("matmul", seconds / 4),
            "b": lambda: crew.all("plain", seconds),
            "c": lambda: crew.one("optuna", seconds, cores),
        }
        for threads in _threads(cores):
            contenders[f"a{threads}"] = functools.partial(crew.one, "plain", seconds, threads)
        if isinstance(ray, RayTune):
            contenders["d"] = lambda: ray.rate(name, 8 * cores)
        found: dict[str, list[float]] = {key: [] for key in contenders}
        for number in range(rounds):
            for key, contender in contenders.items():
                if key == "d" and number % 2:
                    continue  # its actors take seconds to start: every other round
                found[key].append(contender())
        flops = crew.flops
    rates = {key: statistics.median(values) for key, values in found.items()}
    rates["a"] = max(rates[f"a{threads}"] for threads in _threads(cores))
    return {
        "name": name,
        "title": workload.title,
        "width": best,
        "widths": widths,
        "trials_per_second": rates,
        "spread": {key: (min(values), max(values)) for key, values in found.items()},
        "ratios": {key: rates["pack"] / rates[key] for key in PEERS if key in rates},
        "matmul_share": flops * rates["pack"] / rates["matmul"] if flops else None,
        "b_matmul_share": flops * rates["b"] / rates["matmul"] if flops else None,
        "ray": ray if isinstance(ray, str) else None,
    }


def _threads(cores: int) -> list[int]:
    return sorted({1, *(2**k for k in range(1, int(math.log2(cores)) + 1)), cores})


def machine(device: str) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu,
        "cores": _cores(),
        "gpu": gpu,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def table(report: dict[str, Any]) -> str:
    """Markdown: one row per contender, one block per workload."""
    m = report["machine"]
    on = f"{m['gpu']}, " if m["gpu"] else ""
    lines = [
        f"{m['date']}, {on}{m['cores']} cores ({m['cpu']}), torch {m['torch']}, load at the start {m['load']:.1f}; "
        f"medians of {report['rounds']} interleaved rounds, trials per second of the whole machine.",
        "",
        "| workload | packs (width) | (a) one at a time | (b) a process per core | (c) Optuna | (d) Ray Tune "
        "| matmul rate | packs' share | (b)'s share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for w in report["workloads"]:
        rates, ratios = w["trials_per_second"], w["ratios"]
        peers = [f"{rates[k]:.3g} → {ratios[k]:.2f} ×" if k in rates else w["ray"] or "—" for k in PEERS]
        shares = [f"{w[k]:.0%}" if w[k] is not None else "—" for k in ("matmul_share", "b_matmul_share")]
        lines.append(
            f"| {w['title']} | **{rates['pack']:.3g}** ({w['width']}) | {' | '.join(peers)} "
            f"| {rates['matmul'] / 1e9:.0f} GFLOP/s | {' | '.join(shares)} |"
        )
    lines += ["", "Width curve, trials per second:", ""]
    for w in report["workloads"]:
        curve = " · ".join(f"{width}: {rate:.3g}" for width, rate in w["widths"].items())
        lines.append(f"- {w['name']}: {curve}")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put ``text`` between the markers of packs in a Markdown file; a file without them gets a section."""
    begin, end = "<!-- packs: written by benchmarks/packs.py -->", "<!-- /packs -->"
    block = f"{begin}\n{text}\n{end}"
    old = path.read_text() if path.exists() else "# Results\n"
    if begin in old:
        head, rest = old.split(begin, 1)
        new = head + block + rest.split(end, 1)[1]
    else:
        new = f"{old.rstrip()}\n\n## Packs\n\n{block}\n"
    path.write_text(new)


def _ray(cores: int, wanted: bool) -> RayTune | str:
    if not wanted:
        return "not run"
    try:
        return RayTune(cores)
    except Exception as error:  # absent, or this machine does not let it start
        return f"not run: {type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Packs against plain loops, Optuna and Ray Tune.")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="one short round, without Ray Tune")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="per measurement")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="also write the table into this Markdown file")
    args = parser.parse_args()
    unknown = set(args.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}: there are {', '.join(WORKLOADS)}")
    rounds, seconds = (1, 0.5) if args.quick else (args.rounds, args.seconds)
    cores = _cores()
    report: dict[str, Any] = {"machine": machine(args.device), "rounds": rounds, "workloads": []}
    ray = _ray(cores, wanted=not (args.quick or args.no_ray) and args.device == "cpu")
    for name in args.workloads or list(WORKLOADS):
        print(f"{name} …", file=sys.stderr)
        report["workloads"].append(
            measure(name, device=args.device, cores=cores, seconds=seconds, rounds=rounds, ray=ray)
        )
    if isinstance(ray, RayTune):
        ray.close()
    text = table(report)
    print(json.dumps(report, indent=2) if args.json else text)
    if args.results:
        write(args.results, text)


if __name__ == "__main__":
    main()
