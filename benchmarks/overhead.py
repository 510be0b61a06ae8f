"""What it costs to have a training run by somebody else: start-up, and a trial that does nothing.

    python -m benchmarks.overhead                            # some minutes
    python -m benchmarks.overhead --parts nodes --write      # also into RESULTS.md

Everything is a real process here: server, worker, SQLite that waits for the disk. Beside it, in the same run and round
by round, Optuna with RDBStorage on SQLite (the objective is called in its own process, a command through
``subprocess.run``) and Ray Tune (one actor per core, used again). Times are wall clock; a trial's is that of the whole
study over its trials.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.verdicts import write
from hpsearch import Client
from tests.ray_nodes import Nodes

OBJECTIVES = """
import time

def nothing(trial):
    return 1.0

def sleeping(trial):
    time.sleep(0.5)
    return 1.0
"""
PRINTING = ["/bin/echo", '{{"step": 1, "loss": 1.0}}']
LIMITS = {
    "`hpsearch --help`": (0.3, "s"),
    "`serve` ready": (2.0, "s"),
    "submit to first epoch, warm worker": (3.0, "s"),
    "`python` trial that does nothing": (5.0, "ms"),
    "`command` beyond its own start": (20.0, "ms"),
}
PARTS = {"trials": "Overhead", "nodes": "Overhead on Ray"}
"""What can be measured by itself → its section of RESULTS.md."""
ON_RAY = {"worker actor to first lease": "≤ 5 s", "two Ray nodes against one, trials of 0.5 s": "≥ 1.9 ×"}
SLEEPERS = 24
"""Trials of the study that is timed on one node and on two."""
PEERS = ["Optuna, RDBStorage", "Ray Tune"]


class House:
    """A server and one worker, or none."""

    def __init__(self, folder: Path, *, worker: bool = True) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
        self._processes: list[subprocess.Popen[str]] = []
        (folder / "bench_mine.py").write_text(OBJECTIVES)
        began = time.perf_counter()
        server = self._start(environment, "serve", "--store", "sqlite:///bench.db", "--port", "0")
        assert server.stdout is not None
        url = server.stdout.readline().split()[1]
        while urllib.request.urlopen(f"{url}/readyz").status != 200:
            time.sleep(0.005)
        self.ready_seconds = time.perf_counter() - began
        self.client = Client(url)
        self.url, self._environment, self._number = url, environment, 0
        if worker:
            self.work()

    def work(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        """Start a worker."""
        options = ("worker", "--server", self.url, "--allow", "*", "--path", str(self.folder), *options)
        return self._start({**self._environment, **variables}, *options)

    def _start(self, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "hpsearch", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=self.folder, env=environment, text=True
        )
        self._processes.append(process)
        return process

    def submit(self, objective: dict[str, Any], metric: str, trials: int, *, checks: bool = False) -> Any:
        self._number += 1
        document = {
            "name": f"bench-{self._number}",
            "objective": objective,
            "metric": {"name": metric, "direction": "minimize"},
            "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
            "stages": [{"name": "a", "trials": trials, "epochs": 1}],
            "preflight": checks,
        }
        return self.client.submit(document)

    def seconds(self, objective: dict[str, Any], trials: int) -> float:
        """For a study of so many trials, from submitting to its end."""
        began = time.perf_counter()
        study = self.submit(objective, "loss", trials)
        study.wait(poll_seconds=0.25)  # looking costs the server time, too
        seconds = time.perf_counter() - began
        if study.read()["counts"].get("completed") != trials:
            raise RuntimeError(f"not all trials completed: {study.read()}")
        return seconds

    def first_epoch(self) -> float:
        """From submitting a built-in training, its checks included, to its first metric."""
        train = {"kind": "train", "data": {"source": "digits"}, "model": {"kind": "mlp", "hidden": [32]}}
        began = time.perf_counter()
        study = self.submit(train, "val_loss", 2, checks=True)
        while not (study.trials() and study.metrics(0)):
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        study.wait(poll_seconds=0.05)
        return seconds

    def cpu(self) -> float:
        """Seconds of CPU time that the server, the worker and what they started have taken."""
        parents, spent = {}, {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rsplit(")", 1)[1].split()
                parents[int(stat.parent.name)] = int(fields[1])
                spent[int(stat.parent.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        ours = {process.pid for process in self._processes}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return sum(spent.get(pid, 0.0) for pid in ours)

    def close(self) -> None:
        self.client.close()
        for process in reversed(self._processes):
            process.terminate()
            process.wait()


def on_ray(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Row of :data:`ON_RAY` → rounds. Nodes of one CPU; the second joins when the first has been timed."""
    found: dict[str, list[float]] = {name: [] for name in ON_RAY}
    for n in range(rounds):
        own = folder / f"ray-{n}"
        own.mkdir()
        house = House(own, worker=False)
        try:
            with Nodes() as nodes:
                nodes.add("one")
                fleet = house.work(
                    "--on", "auto", "--min", "0", "--max", "2", "--idle-seconds", "600", **nodes.environment
                )
                study = house.submit({"kind": "python", "entrypoint": "bench_mine:sleeping"}, "loss", 4)
                assert fleet.stdout is not None
                fleet.stdout.readline()  # the line that says that an actor was asked for
                began = time.perf_counter()
                while not study.trials():
                    time.sleep(0.01)
                first, _ = ON_RAY
                found[first].append(time.perf_counter() - began)
                study.wait(poll_seconds=0.1)
                alone = _rate(house)
                nodes.add("two")
                while sum(bool(worker) for worker in house.client.workers()) < 2:
                    house.submit({"kind": "python", "entrypoint": "bench_mine:sleeping"}, "loss", 6).wait(
                        poll_seconds=0.1
                    )
                _, second = ON_RAY
                found[second].append(_rate(house) / alone)
        finally:
            house.close()
    return found


def _rate(house: House) -> float:
    """Trials a second, from the first that began to the last that ended."""
    study = house.submit({"kind": "python", "entrypoint": "bench_mine:sleeping"}, "loss", SLEEPERS)
    study.wait(poll_seconds=0.1)
    trials = study.trials()
    times = [[datetime.fromisoformat(trial[key]) for trial in trials] for key in ("started_at", "ended_at")]
    return len(trials) / (max(times[1]) - min(times[0])).total_seconds()


def start_of(command: list[str], times: int) -> float:
    """Seconds to start a program and read its output."""
    began = time.perf_counter()
    for _ in range(times):
        subprocess.run(command, capture_output=True, check=True)
    return (time.perf_counter() - began) / times


def optuna_seconds(folder: Path, trials: int, objective: Callable[[Any], float]) -> float:
    """Per trial, one after the other."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/optuna.db")
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    began = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return (time.perf_counter() - began) / trials


def _nothing(trial: Any) -> float:
    return float(trial.suggest_float("lr", 1e-4, 1e-1, log=True) * 0 + 1)


def _printing(trial: Any) -> float:
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    subprocess.run([PRINTING[0], PRINTING[1].replace("{{", "{").replace("}}", "}")], capture_output=True, check=True)
    return 1.0


def _ray_nothing(config: dict[str, Any]) -> dict[str, float]:
    del config
    return {"loss": 1.0, "at": time.time()}


def ray_seconds(folder: Path, trials: int) -> float | None:
    """Per trial on all cores, from when each actor has finished its first; None where Ray is not installed."""
    try:
        import ray
        from ray import tune
    except ModuleNotFoundError:
        return None
    cores = os.cpu_count() or 1
    if not ray.is_initialized():
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(_ray_nothing, {"cpu": 1}),
        param_space={"lr": tune.loguniform(1e-4, 1e-1)},
        tune_config=tune.TuneConfig(num_samples=trials + cores, reuse_actors=True),
        run_config=tune.RunConfig(verbose=0, storage_path=str(folder / "ray")),
    )
    with contextlib.redirect_stdout(sys.stderr):
        ended = sorted(float(at) for at in tuner.fit().get_dataframe()["at"])
    return (ended[-1] - ended[cores - 1]) / trials


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Row → [ours, Optuna's, Ray Tune's, CPU time of ours], each a list of rounds."""
    found: dict[str, list[list[float]]] = {name: [[], [], [], []] for name in LIMITS}
    names = list(LIMITS)
    nothing = {"kind": "python", "entrypoint": "bench_mine:nothing"}
    printing = {"kind": "command", "argv": PRINTING}
    for _ in range(options.rounds):
        found[names[0]][0].append(start_of([sys.executable, "-m", "hpsearch", "--help"], 1))
    for n in range(options.rounds):
        own = folder / str(n)
        own.mkdir()
        house = House(own)
        try:
            found[names[1]][0].append(house.ready_seconds)
            house.first_epoch()
            house.seconds(nothing, 10)  # the worker has started, and imported the objective
            found[names[2]][0].append(house.first_epoch())
            cpu = house.cpu()
            found[names[3]][0].append(1e3 * house.seconds(nothing, options.trials) / options.trials)
            found[names[3]][3].append(1e3 * (house.cpu() - cpu) / options.trials)
            found[names[3]][1].append(1e3 * optuna_seconds(own, options.trials, _nothing))
            start = start_of(PRINTING, 50)
            commands = options.trials // 2
            cpu = house.cpu()
            found[names[4]][0].append(1e3 * (house.seconds(printing, commands) / commands - start))
            found[names[4]][3].append(1e3 * (house.cpu() - cpu) / commands)
            found[names[4]][1].append(1e3 * (optuna_seconds(own, commands, _printing) - start_of(PRINTING, 50)))
        finally:
            house.close()
        if options.ray and (seconds := ray_seconds(own, 32)) is not None:
            found[names[3]][2].append(1e3 * seconds)
    return found


def table(found: dict[str, list[list[float]]]) -> str:
    lines = [f"| | to reach | hpsearch | {' | '.join(PEERS)} | CPU time of hpsearch |", "|---|---|---|---|---|---|"]
    for name, (limit, unit) in LIMITS.items():
        cells = [_cell(rounds, unit) for rounds in found[name]]
        lines.append(f"| {name} | ≤ {limit:g} {unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ray_table(found: dict[str, list[float]]) -> str:
    lines = ["| on Ray | to reach | hpsearch |", "|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {name} | {ON_RAY[name]} | {_cell(found[name], ON_RAY[name][-1])} |" for name in found)]
    )


def _cell(rounds: list[float], unit: str) -> str:
    if not rounds:
        return ""
    return f"{statistics.median(rounds):.2f} {unit} ({min(rounds):.2f} to {max(rounds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=400, help="of each study of trials that do nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--no-ray", dest="ray", action="store_false", help="leave Ray Tune out of the part trials")
    parser.add_argument("--write", action="store_true", help="put what was measured into RESULTS.md")
    options = parser.parse_args()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for part in options.parts:
        load, began = os.getloadavg()[0], time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="hpsearch-bench-", dir=".") as made:
            folder = Path(made).absolute()
            found = table(measure(folder, options)) if part == "trials" else ray_table(on_ray(folder, options.rounds))
        section = f"## {PARTS[part]}\n\n{about(part, options.rounds, load, began)}\n\n{found}\n"
        print(section, flush=True)
        if options.write:
            write(section)


def about(part: str, rounds: int, load: float, began: float) -> str:
    """How a part was measured."""
    setting = {
        "trials": "One worker; Optuna in one process; Ray Tune with one actor per core.",
        "nodes": "A cluster on this machine whose nodes have one CPU each; a worker is an actor.",
    }
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} × {platform.machine()} CPU, load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after (this work included), {time.perf_counter() - began:.0f} s; "
        f"`python -m benchmarks.overhead --parts {part} --write`. Medians of {rounds} rounds, in brackets the lowest "
        f"and the highest. {setting[part]}"
    )


if __name__ == "__main__":
    main()
