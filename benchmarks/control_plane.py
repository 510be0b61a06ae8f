"""What a trial costs on the server, against Optuna's storages, and how that changes with the size of the study.

    python -m benchmarks.control_plane                      # all parts, some twenty minutes
    python -m benchmarks.control_plane --parts peers --rounds 3
    python -m benchmarks.control_plane --parts flat --databases SQLite --write      # also into RESULTS.md

A trial is: ask, ten reports, tell, with two params; ours over HTTP from a client of Python's ``http.client`` with one
connection, which waits for the answer to each of the twelve calls, and once more as our own worker does it, which waits
for the answer to a report only where that may be to stop, and hands over what else it reported with the results, whose
answer brings the next trials. With early stopping, by the median rule on both sides, each asks after every report
whether to stop, and goes on, so that all make ten. Optuna's is in the client's own process. Everything is durable:
SQLite and PostgreSQL wait for the disk. The contenders take turns, slice by slice, and ratios are taken within a turn:
how fast this machine is changes from second to second. Shown are medians of the turns, in brackets the lowest and the
highest. GrpcStorageProxy needs ``grpcio`` and ``protobuf``; without them it is left out.

    peers      at 1,000 finished trials: packs of 16 and one at a time, without and with early stopping; ``worker``: as
               our own worker does it, else with each call waited for
    flat       the same at 10^2, 10^4 and 10^6, with the server's memory and times of reading requests meanwhile
    workers    8 and 64 workers at once against one
    transfer   10^6 finished trials in and out: ``hpsearch import`` and ``export``, Parquet; a tenth by ``POST trials``
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.optuna_storage import connect, database, postgres, proxy, quiet
from benchmarks.verdicts import RESULTS, write
from hpsearch.http import Connection
from hpsearch.trial import Report, Result, TrialState
from hpsearch.worker.session import Session

STEPS = 10
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "y": {"type": "float", "low": 1e-5, "high": 1.0, "log": True}}
PARTS = ("peers", "flat", "workers", "transfer")
DATABASES = ("SQLite", "PostgreSQL")
SECTION = "## Control plane"
RULES = ("none", "median")
PACK = 16
GIVEN = 5_000
"""Finished trials in one request."""


READS = {
    "best": "best",
    "page": "trials?limit=100",
    "those that run": "trials?state=running",
    "flags": "flags",
    "stages": "stages",
}
"""Reading requests, p99 and the worst in brackets."""
PAUSE_SECONDS = 0.005
"""Between two of them."""


class Server:
    """A server of ours as a process, and one connection to it."""

    def __init__(self, store: str, folder: Path) -> None:
        command = [sys.executable, "-m", "hpsearch", "serve", "--store", store, "--port", "0"]
        command += ["--limit", "trials=10000000"]
        self.store = store
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, text=True
        )
        assert self._process.stdout is not None
        self.address = urlsplit(self._process.stdout.readline().split()[1]).netloc
        self.client = Client(self.address)

    def memory(self) -> float:
        """Resident memory in MB; the peak since the start."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def imported(self, name: str, n: int, folder: Path) -> float:
        """Have a running study with n finished trials by ``hpsearch import``; returns the seconds of that."""
        self.client.submit(f"{name}-seed")
        self.client.add(f"{name}-seed", 1)
        file = folder / f"{name}.study.gz"
        run(["export", f"{name}-seed", "--format", "study", "--output", str(file), "--store", self.store])
        grow(file, n)
        seconds = timed(lambda: run(["import", str(file), "--name", name, "--store", self.store]))
        file.unlink()
        self.client.call("POST", f"/api/v1/studies/{name}/resume")
        return seconds

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class Client:
    """A worker's calls."""

    def __init__(self, address: str, worker: str = "bench") -> None:
        self._http = http.client.HTTPConnection(address, timeout=600)
        self._worker = worker

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json", **headers}
        try:
            self._http.request(method, path, data, head)
            response = self._http.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError):  # it lay idle for longer than the server waits
            self._http.close()
            self._http.request(method, path, data, head)
            response = self._http.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:300]!r}")
        return answer

    def submit(self, name: str, early_stopping: str = "none") -> None:
        stage = {"name": "only", "trials": 5_000_000, "epochs": STEPS + 1, "early_stopping": early_stopping}
        metric = {"name": "loss", "direction": "minimize"}
        document = {"name": name, "objective": {"kind": "external"}, "metric": metric, "space": SPACE}
        self.call("POST", "/api/v1/studies", document | {"stages": [stage]})

    def add(self, name: str, n: int) -> None:
        """Finished trials."""
        for first in range(0, n, GIVEN):
            numbers = range(first, min(first + GIVEN, n))
            trials = [{"params": {"x": k % 997 / 997, "y": 0.5}, "value": k % 997 / 997 + 0.1} for k in numbers]
            self.call("POST", f"/api/v1/studies/{name}/trials", {"trials": trials})

    def trained(self, study: str, n: int) -> None:
        """So many finished trials with all of their steps."""
        while n > 0:
            n -= self.pack(study, min(n, GIVEN // STEPS))

    def pack(self, study: str, width: int) -> int:
        """Lease, report ten times, finish; returns how many trials that were."""
        asked = {"worker": self._worker, "capacity": width, "study": study}
        leases = json.loads(self.call("POST", "/api/v1/leases", asked))["leases"]
        running = {lease["token"]: lease["params"]["x"] for lease in leases}
        for step in range(1, STEPS + 1):
            reports = [{"token": t, "step": step, "metrics": {"loss": x + 1 / step}} for t, x in running.items()]
            json.loads(self.call("POST", "/api/v1/leases/report", {"worker": self._worker, "reports": reports}))
        results = [{"token": token, "state": "completed", "value": x} for token, x in running.items()]
        answer = json.loads(self.call("POST", "/api/v1/leases/finish", {"worker": self._worker, "results": results}))
        assert all(outcome["accepted"] for outcome in answer["outcomes"])
        return len(leases)


class Worker:
    """The calls as our own worker makes them."""

    def __init__(self, address: str) -> None:
        self._session = Session(Connection(f"http://{address}"), "worker", {}, threading.Event())

    def pack(self, study: str, width: int) -> int:
        """As :meth:`Client.pack`."""
        leases = self._session.lease(lambda: width, kinds=["external"], study=study).leases
        running = {lease.token: float(lease.params["x"]) for lease in leases}
        for step in range(1, STEPS + 1):
            self._session.report([Report(t, step, {"loss": x + 1 / step}) for t, x in running.items()])
        results = [Result(token, TrialState.COMPLETED, x) for token, x in running.items()]
        assert all(outcome.accepted for outcome in self._session.finish(results))
        return len(leases)


# -- Optuna's storages --------------------------------------------------------------------------------------------


def optuna_trial(study: optuna.Study, *, prune: bool) -> int:
    trial = study.ask()
    x = trial.suggest_float("x", 0.0, 1.0)
    trial.suggest_float("y", 1e-5, 1.0, log=True)
    for step in range(1, STEPS + 1):
        trial.report(x + 1 / step, step)
        if prune:
            trial.should_prune()
    study.tell(trial, x)
    return 1


def optuna_study(storage: Any, n: int, name: str = "peer") -> optuna.Study:
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.MedianPruner()
    study = optuna.create_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    distributions = {
        "x": optuna.distributions.FloatDistribution(0.0, 1.0),
        "y": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True),
    }
    for k in range(n):
        x = k % 997 / 997
        steps = {step: x + 1 / step for step in range(1, STEPS + 1)}
        params = {"x": x, "y": 0.5}
        study.add_trial(
            optuna.create_trial(params=params, distributions=distributions, value=x, intermediate_values=steps)
        )
    return study


# -- measuring ----------------------------------------------------------------------------------------------------


def in_turn(units: dict[str, Callable[[], int]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Trials per second of each contender in each round."""
    rates: dict[str, list[float]] = {name: [] for name in units}
    for unit in units.values():
        unit()
    for _ in range(rounds):
        for name, unit in units.items():
            n, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < seconds:
                n += unit()
            rates[name].append(n / spent)
    return rates


def ratio(rates: dict[str, list[float]], ours: str, theirs: str) -> str:
    values = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def median(rates: dict[str, list[float]], name: str) -> str:
    return f"{statistics.median(rates[name]):.0f}"


def peers(server: str, folder: Path, options: argparse.Namespace) -> str:
    """Ours and Optuna's at 1,000 finished trials."""
    lines = []
    with contextlib.ExitStack() as stack:
        ours = {
            "SQLite": Server(f"sqlite:///{folder / 'peers.db'}", folder),
            "PostgreSQL": Server(database(server), folder),
        }
        workers = {where: Worker(each.address) for where, each in ours.items()}
        for each in ours.values():
            stack.callback(each.close)
            for rule in RULES:
                each.client.submit(rule, rule)
                each.client.trained(rule, options.finished)
        rdb_url = database(server).replace("postgresql://", "postgresql+psycopg://")
        storages = {
            "RDB SQLite": RDBStorage(f"sqlite:///{folder / 'optuna.db'}"),
            "RDB PostgreSQL": RDBStorage(rdb_url),
            "Journal": JournalStorage(JournalFileBackend(str(folder / "journal"))),
        }
        theirs = {
            (name, rule): optuna_study(each, options.finished, rule)
            for name, each in storages.items()
            for rule in RULES
        }
        if importlib.util.find_spec("grpc"):
            through = connect("proxy", str(stack.enter_context(proxy(rdb_url))))
            for rule in RULES:
                study = optuna.load_study(
                    study_name=rule,
                    storage=through,
                    sampler=optuna.samplers.RandomSampler(),
                    pruner=optuna.pruners.MedianPruner(),
                )
                theirs["Grpc proxy", rule] = study
        for rule in RULES:
            units: dict[str, Callable[[], int]] = {}
            for where, each in ours.items():
                for caller, how in ((each.client, ""), (workers[where], ", worker")):
                    units[f"{where} ×{PACK}{how}"] = lambda c=caller, r=rule: c.pack(r, PACK)
                    units[f"{where} ×1{how}"] = lambda c=caller, r=rule: c.pack(r, 1)
            for (name, of), study in theirs.items():
                if of == rule:
                    units[name] = lambda s=study, r=rule: optuna_trial(s, prune=r != "none")
            rates = in_turn(units, options.rounds, options.seconds)
            lines += peer_rows(rule, rates)
    head = "| early stopping | ours | trials/s | × RDB, same database | × Journal | × Grpc proxy |"
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def peer_rows(rule: str, rates: dict[str, list[float]]) -> list[str]:
    lines = []
    for name in [name for name in rates if "×" in name]:
        where = name.split()[0]
        grpc = ratio(rates, name, "Grpc proxy") if "Grpc proxy" in rates else "–"
        cells = [median(rates, name), ratio(rates, name, f"RDB {where}"), ratio(rates, name, "Journal"), grpc]
        lines.append(f"| {rule} | {name} | {' | '.join(cells)} |")
    others = ", ".join(f"{name} {median(rates, name)}" for name in rates if "×" not in name)
    lines.append(f"| {rule} | *Optuna, trials/s* | {others} | | | |")
    return lines


def flat(url: str, folder: Path, options: argparse.Namespace) -> str:
    """Ours at three sizes."""
    lines = [
        "| trials in the study | packs of 16, trials/s | ÷ smallest | server's memory, MB | "
        f"{' | '.join(f'{name}, ms' for name in READS)} |",
        "|---|---|---|---|" + "---|" * len(READS),
    ]
    with contextlib.closing(Server(url, folder)) as ours:
        for size in options.sizes:
            ours.imported(f"n{size}", size, folder)
        units = {f"n{n}": lambda c=ours.client, n=n: c.pack(f"n{n}", PACK) for n in options.sizes}
        rates = in_turn(units, options.rounds, options.seconds)
        for size in options.sizes:
            name = f"n{size}"
            reads = [read_times(ours, name, path) for path in READS.values()]
            relative = ratio(rates, name, f"n{options.sizes[0]}")
            cells = [median(rates, name), relative, f"{ours.memory():.0f}", *reads]
            lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_times(server: Server, study: str, path: str) -> str:
    """Milliseconds of a reading request while another client works on the study: p99 of 200, in brackets the worst."""
    is_over = threading.Event()
    worker = Client(server.address, "meanwhile")

    def work() -> None:
        while not is_over.is_set():
            worker.pack(study, PACK)

    working = threading.Thread(target=work)
    working.start()
    try:
        times = []
        for _ in range(200):
            times.append(timed(lambda: server.client.call("GET", f"/api/v1/studies/{study}/{path}")) * 1000)
            time.sleep(PAUSE_SECONDS)
    finally:
        is_over.set()
        working.join()
    return f"{sorted(times)[197]:.0f} ({max(times):.0f})"


def workers(url: str, folder: Path, options: argparse.Namespace) -> str:
    """Many workers on one study, one trial at a time."""
    lines = ["| workers | trials/s together | ÷ one worker |", "|---|---|---|"]
    with contextlib.closing(Server(url, folder)) as ours:
        ours.client.submit("crowd")
        crews = {f"{n}": Crew(ours.address, n) for n in (1, 8, 64)}
        rates: dict[str, list[float]] = {name: [] for name in crews}
        for _ in range(options.rounds):
            for name, crew in crews.items():
                rates[name].append(crew.rate(options.seconds))
    lines += [f"| {name} | {median(rates, name)} | {ratio(rates, name, '1')} |" for name in crews]
    return "\n".join(lines)


class Crew:
    """Threads that work one trial at a time, each over a connection of its own."""

    def __init__(self, address: str, size: int) -> None:
        self._clients = [Client(address, f"crew-{size}-{i}") for i in range(size)]

    def rate(self, seconds: float) -> float:
        done, start = [0] * len(self._clients), time.perf_counter()

        def work(i: int) -> None:
            while time.perf_counter() - start < seconds:
                done[i] += self._clients[i].pack("crowd", 1)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(done))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done) / (time.perf_counter() - start)


def transfer(url: str, folder: Path, options: argparse.Namespace) -> str:
    """A large study in and out."""
    lines = ["| what | seconds | server's memory, MB |", "|---|---|---|"]
    with contextlib.closing(Server(url, folder)) as ours:
        found = transferred(ours, options.sizes[-1], folder)
        lines += [f"| {what} | {seconds:.0f} | {memory} |" for what, seconds, memory in found]
    return "\n".join(lines)


def transferred(ours: Server, n: int, folder: Path) -> Iterator[tuple[str, float, str]]:
    yield f"`hpsearch import` of {n:,} finished trials", ours.imported("large", n, folder), ""
    accept = {"Accept": "application/vnd.apache.parquet"}
    seconds = timed(lambda: ours.client.call("GET", "/api/v1/studies/large/trials", **accept))
    yield "Parquet of them, streamed", seconds, f"{ours.memory():.0f}"
    export = ["export", "large", "--format", "study", "--output", str(folder / "large.study.gz"), "--store", ours.store]
    yield "`hpsearch export --format study`", timed(lambda: run(export)), ""
    ours.client.submit("posted")
    seconds = timed(lambda: ours.client.add("posted", n // 10))
    yield f"{n // 10:,} by `POST trials`, {GIVEN:,} a call", seconds, f"{ours.memory():.0f}"


def grow(file: Path, n: int) -> None:
    """Fill the file of a study with one finished trial up to n of them."""
    with gzip.open(file, "rt", encoding="utf-8") as small:
        lines = [json.loads(line) for line in small]
    study = next(line["study"] for line in lines if "study" in line)
    stage = next(line["stage"] for line in lines if "stage" in line)
    trial = next(line for line in lines if "trial" in line)
    events = next(line["events"] for line in lines if "events" in line)
    told = next(event for event in events if event["kind"] == "trial")
    study |= {"next_number": n, "last_event": len(events) - 1 + n}
    stage |= {"n_completed": n}
    with gzip.open(file, "wt", encoding="utf-8", compresslevel=1) as large:
        large.writelines(json.dumps(line) + "\n" for line in lines if not {"trial", "events", "end"} & set(line))
        for k in range(n):
            params, value = json.dumps({"x": k % 997 / 997, "y": 0.5}), k % 997 / 997 + 0.1
            row = trial["trial"] | {"number": k, "params": params, "value": value}
            large.write(json.dumps(trial | {"trial": row, "id": k + 1}) + "\n")
        large.write(json.dumps({"events": [event for event in events if event["kind"] != "trial"]}) + "\n")
        data = json.loads(told["data"])
        for first in range(0, n, 2000):
            numbers = range(first, min(first + 2000, n))
            entries = [told | {"seq": len(events) + k, "data": json.dumps(data | {"number": k})} for k in numbers]
            large.write(json.dumps({"events": entries}) + "\n")
        large.write(json.dumps({"end": {"trials": n, "events": len(events) - 1 + n}}) + "\n")


def run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "hpsearch", *arguments], check=True, stdout=subprocess.DEVNULL)


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one contender in one round")
    parser.add_argument("--finished", type=int, default=1000, help="trials in the study before, for the part peers")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 10_000, 1_000_000])
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES), help="of all but peers")
    parser.add_argument("--write", action="store_true", help="put what was measured into RESULTS.md")
    options = parser.parse_args()
    quiet()
    with postgres() as server, tempfile.TemporaryDirectory(prefix="hpsearch-bench-", dir=".") as folder:
        for part in options.parts:
            for where in options.databases if part != "peers" else [None]:
                measure(part, where, server, Path(folder).absolute(), options)


def measure(part: str, where: str | None, server: str, folder: Path, options: argparse.Namespace) -> None:
    """One part, on one database or (peers) on both."""
    load, start = os.getloadavg()[0], time.perf_counter()
    if where is None:
        table = peers(server, folder, options)
    else:
        url = f"sqlite:///{folder / part}.db" if where == "SQLite" else database(server)
        table = {"flat": flat, "workers": workers, "transfer": transfer}[part](url, folder, options)
    said = (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} × {platform.machine()} CPU, load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after, Optuna {optuna.__version__}, {time.perf_counter() - start:.0f} s; "
        f"`python -m benchmarks.control_plane {' '.join(sys.argv[1:])}`."
    )
    print(f"\n{part} {where or ''}\n{said}\n{table}", flush=True)
    if options.write:
        insert(f"### {part.capitalize()}{f', {where}' if where else ''}", f"{said}\n\n{table}")


def insert(heading: str, text: str) -> None:
    """Put a subsection into the section Control plane of RESULTS.md, in place of one with its heading."""
    old = RESULTS.read_text()
    section = f"{SECTION}\n\n" + old.partition(f"\n{SECTION}\n")[2].partition("\n## ")[0].strip() + "\n"
    before, _, rest = section.partition(f"\n{heading}\n")
    after = "\n### " + rest.partition("\n### ")[2] if "\n### " in rest else ""
    write(f"{before.rstrip()}\n\n{heading}\n\n{text.rstrip()}\n{after}")


if __name__ == "__main__":
    main()
