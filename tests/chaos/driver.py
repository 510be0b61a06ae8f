"""Kills, stops, cuts, delays, restarts and fills, while workers work; then asks the checker what came of it.

    python tests/chaos/driver.py sqlite --minutes 10
    python tests/chaos/driver.py postgresql --minutes 10 --faults 1000

Prints what was done and what was found. Exit status: 0 nothing lost, 1 something was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from chaos.checker import check, read_journals
from chaos.databases import Postgres, SmallDisk, free_port
from chaos.proxy import Proxy

LEASE_SECONDS = 2
WORKERS = 4
SKEWS = (0.0, -5.0, 7.0, 1000.0)
"""Hours by which the workers' clocks are wrong."""


@dataclass
class Report:
    """What a run did, and what was found."""

    faults: list[str]
    seen: dict[str, int]
    done: Counter[str] = field(default_factory=Counter)

    @property
    def n_done(self) -> int:
        return sum(self.done.values())


class Servers:
    """Server processes on fixed ports, started again when they are killed."""

    def __init__(self, store: str, folder: Path, n: int) -> None:
        self._store, self._folder = store, folder
        self.ports = [free_port() for _ in range(n)]
        self._processes = [self._start(port) for port in self.ports]
        for port in self.ports:
            self._wait(port)

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hpsearch", "serve", "--store", self._store, "--port", str(port)]
        log = (self._folder / f"server-{port}.log").open("ab")
        with log:
            more = ["--lease-seconds", str(LEASE_SECONDS)]
            return subprocess.Popen([*command, *more], cwd=self._folder, stdout=log, stderr=log)

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code == 200:
                    return
            self.revive()
            time.sleep(0.1)
        raise AssertionError(f"the server on port {port} does not come back")

    def revive(self) -> None:
        """Start those again that ended by themselves: nobody should."""
        for i, process in enumerate(self._processes):
            if process.poll() is not None:
                self._processes[i] = self._start(self.ports[i])

    def kill(self) -> None:
        i = random.randrange(len(self.ports))
        self._processes[i].kill()
        self._processes[i].wait()
        self._processes[i] = self._start(self.ports[i])
        self._wait(self.ports[i])

    def stop_for(self, seconds: float) -> None:
        pause(random.choice(self._processes), seconds)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


class Workers:
    """Worker processes, started again when they are killed."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self._processes = [self._start(i) for i in range(WORKERS)]

    def _start(self, i: int) -> subprocess.Popen[bytes]:
        script = str(Path(__file__).with_name("worker.py"))
        command = [sys.executable, "-I", script, self._url, f"w{i}", str(self._folder), str(SKEWS[i % len(SKEWS)])]
        with (self._folder / f"worker-{i}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        i = random.randrange(WORKERS)
        self._processes[i].kill()
        self._processes[i].wait()
        self._processes[i] = self._start(i)

    def stop_for(self, seconds: float) -> None:
        pause(random.choice(self._processes), seconds)

    def close(self) -> None:
        (self._folder / "stop").touch()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()

    def check(self) -> list[str]:
        """What workers died of by themselves."""
        logs = [path.read_text() for path in self._folder.glob("worker-*.log")]
        return [f"a worker crashed: {text[-500:]}" for text in logs if "Traceback" in text]


def pause(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)


def study(number: int) -> dict[str, Any]:
    """Two stages; every other one stops trials early and promotes some of them again."""
    rule = {"early_stopping": {"name": "asha", "min_epochs": 1, "reduction": 2}} if number % 2 else {}
    return {
        "name": f"chaos-{number}",
        "objective": {"kind": "external"},
        "metric": {"name": "loss", "direction": "minimize"},
        "space": {"x": {"type": "float", "low": 0.0, "high": 1.0}},
        "stages": [{"name": "coarse", "trials": 40, "epochs": 4, **rule}, {"name": "fine", "trials": 20, "epochs": 4}],
    }


class Studies:
    """One study after the other, each submitted when the one before has ended."""

    def __init__(self, ports: list[int], folder: Path) -> None:
        self._ports, self._folder = ports, folder
        self.number = 0
        self.is_last = False
        self.ended = threading.Event()
        (folder / "study").write_text("chaos-0")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            name = f"chaos-{self.number}"
            self._ask("POST", "/api/v1/studies", json=study(self.number), headers={"Idempotency-Key": name})
            part = self._folder / "study.part"
            part.write_text(name)
            part.replace(self._folder / "study")
            while self._ask("GET", f"/api/v1/studies/{name}").get("state") not in ("completed", "failed", "cancelled"):
                time.sleep(0.3)
            if self.is_last:
                self.ended.set()
                return
            self.number += 1

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        while True:
            with contextlib.suppress(httpx2.HTTPError, json.JSONDecodeError):
                response = httpx2.request(
                    method, f"http://127.0.0.1:{random.choice(self._ports)}{path}", timeout=5, **more
                )
                if response.status_code < 300:
                    document: dict[str, Any] = response.json()
                    return document
                assert response.status_code >= 500, response.text
            time.sleep(0.2)


def run(database: str, *, seconds: float, faults: int = 0, seed: int | None = None) -> Report:
    """Chaos for so long, and until so many faults were made; then peace until all is done, and the check."""
    random.seed(seed)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpsearch-chaos-", dir="/tmp")))
        (folder / "disk").mkdir()
        disk = SmallDisk(folder / "disk")
        stack.callback(disk.close)
        postgres = Postgres() if database == "postgresql" else None
        if postgres is not None:
            stack.callback(postgres.close)
        url = f"sqlite:///{folder / 'disk' / 'store.db'}" if postgres is None else postgres.url
        servers = Servers(url, folder, 1 if postgres is None else 2)
        stack.callback(servers.close)
        proxy = Proxy(servers.ports)
        stack.callback(proxy.close)
        studies = Studies(servers.ports, folder)
        workers = Workers(f"http://127.0.0.1:{proxy.port}", folder)
        stack.callback(workers.close)  # also where the driver itself fails
        done = _make_faults(_faults(servers, workers, proxy, postgres, disk), seconds, faults)
        proxy.delay = 0.0
        studies.is_last = True
        settled = studies.ended.wait(180)
        workers.close()
        if not settled and os.environ.get("CHAOS_KEEP"):
            subprocess.run(["cp", "-r", str(folder), os.environ["CHAOS_KEEP"]])
        found, seen = check(url, read_journals(folder))
        found += workers.check() + ([] if settled else [f"chaos-{studies.number} did not end within 180 s of peace"])
        return Report(found, seen, done)


def _faults(
    servers: Servers, workers: Workers, proxy: Proxy, postgres: Postgres | None, disk: SmallDisk
) -> dict[str, tuple[float, Callable[[], None]]]:
    """Name → how often, and what it does."""

    def delay() -> None:
        proxy.delay = random.choice((0.0, 0.05, 0.3))

    def fill() -> None:
        disk.fill()
        time.sleep(random.uniform(0.2, 1.0))
        disk.free()

    found: dict[str, tuple[float, Callable[[], None]]] = {
        "worker killed": (20, workers.kill),
        "worker stopped past its lease": (2, lambda: workers.stop_for(LEASE_SECONDS * 1.6)),
        "connections cut": (60, lambda: proxy.cut(0.5)),
        "connections delayed": (10, delay),
        "server killed": (2, servers.kill),
        "server stopped": (1, lambda: servers.stop_for(random.uniform(0.5, LEASE_SECONDS * 1.6))),
    }
    if postgres is not None:
        found["PostgreSQL restarted"] = (2, postgres.restart)
    elif disk.can_be_filled:
        found["disk filled"] = (3, fill)
    return found


def _make_faults(faults: dict[str, tuple[float, Callable[[], None]]], seconds: float, n: int) -> Counter[str]:
    done: Counter[str] = Counter()
    for name, (_, act) in faults.items():  # each at least once
        act()
        done[name] += 1
    start = time.monotonic()
    while time.monotonic() - start < seconds or sum(done.values()) < n:
        (name,) = random.choices(list(faults), [often for often, _ in faults.values()])
        faults[name][1]()
        done[name] += 1
        time.sleep(random.uniform(0, 0.3))
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", choices=("sqlite", "postgresql"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--faults", type=int, default=1000, help="go on until so many were made")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    report = run(options.database, seconds=options.minutes * 60, faults=options.faults, seed=options.seed)
    lines = [f"{options.database}: {report.n_done} faults: {dict(report.done)}", f"found: {report.seen}"]
    sys.stdout.write("\n".join([*lines, *(report.faults or ["nothing was lost, doubled or stuck"]), ""]))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
