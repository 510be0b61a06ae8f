"""Simulated workers against one server on PostgreSQL: how long answers take, what is lost, what memory is used.

    python -m benchmarks.load                                  # 1,000 workers, one minute
    python -m benchmarks.load --workers 1000 --minutes 10 --write

Every worker is a connection of its own over real HTTP with a token of the scope ``work``. Once a second it reports a
step of its trial; after ten steps it finishes the trial and leases another. A worker whose answer came late sends the
next at once; how long it took until all had sent what was due says whether the server kept up. In the end every trial
is read back: a step or a result that the server answered for, and does not have, is lost.

Workers come 50 a second; what is sent until all are there is not measured, but counted for what is lost.

``--pace 2`` lets every worker report each two seconds, and so on: the load that a machine holds is found so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from benchmarks.optuna_storage import database, postgres
from benchmarks.verdicts import write
from hpsearch_storage import open_store

STEPS = 10
COMING = 50
"""Workers that begin in a second."""
STUDY: dict[str, Any] = {
    "name": "load",
    "objective": {"kind": "external"},
    "metric": {"name": "loss", "direction": "minimize"},
    "space": {
        "x": {"type": "float", "low": 0.0, "high": 1.0},
        "y": {"type": "float", "low": 1e-5, "high": 1.0, "log": True},
    },
    "stages": [{"name": "all", "trials": 1_000_000}],
}


@dataclass
class Seen:
    """What one process of clients saw.

    Attributes:
        seconds: of every answer, by call.
        measured_from: of the clock of :func:`time.perf_counter`.
        wall: seconds from there until the last worker had done what was due.
        steps: of each trial, the last step that was answered.
        finished: trials whose result was accepted.
        faults: answers that were none of the expected, by what they said.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"lease": [], "report": [], "finish": []})
    measured_from: float = 0.0
    wall: float = 0.0
    steps: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    faults: dict[str, int] = field(default_factory=dict)
    n_calls: int = 0
    """Answered, those before the measuring began included."""

    def add(self, other: Seen) -> None:
        """Take over what another process saw."""
        for call, seconds in other.seconds.items():
            self.seconds[call] += seconds
        self.wall = max(self.wall, other.wall)
        self.n_calls += other.n_calls
        self.steps |= other.steps
        self.finished |= other.finished
        for text, n in other.faults.items():
            self.faults[text] = self.faults.get(text, 0) + n


class Worker:
    """One simulated worker."""

    def __init__(self, name: str, address: str, token: str, seen: Seen) -> None:
        self._name = name
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._head = f"Host: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        self._seen = seen
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def work(self, start: float, end: float, pace: float, *, cut: bool) -> None:
        """Report once in ``pace`` seconds from ``start`` to ``end`` (of the loop's clock).

        What is still due at the end is sent, or with ``cut`` is not.
        """
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, start - loop.time()))
        lease: dict[str, Any] | None = None
        step, due = 0, start
        while due < end and not (cut and loop.time() > end):
            if lease is None:
                found = await self._call("lease", "/api/v1/leases", {"worker": self._name, "study": STUDY["name"]})
                lease, step = (found["leases"] or [None])[0] if found else None, 0
            if lease is not None:
                step += 1
                if await self._report(lease, step) and step >= STEPS:
                    await self._finish(lease)
                    lease = None
            due += pace
            await asyncio.sleep(max(0.0, due - loop.time()))
        if self._streams is not None:
            self._streams[1].close()

    async def _report(self, lease: dict[str, Any], step: int) -> bool:
        report = {"token": lease["token"], "step": step, "metrics": {"loss": 1 / step}}
        found = await self._call("report", "/api/v1/leases/report", {"worker": self._name, "reports": [report]})
        if found and found["decisions"][0]["action"] == "continue":
            self._seen.steps[lease["trial"]] = step
            return True
        if found:
            self._fault(found["decisions"][0]["reason"])
        return False

    async def _finish(self, lease: dict[str, Any]) -> None:
        result = {"token": lease["token"], "state": "completed", "value": 0.1}
        found = await self._call("finish", "/api/v1/leases/finish", {"worker": self._name, "results": [result]})
        if found and found["outcomes"][0]["accepted"]:
            self._seen.finished.add(lease["trial"])
        elif found:
            self._fault(found["outcomes"][0]["reason"])

    async def _call(self, call: str, path: str, document: dict[str, Any]) -> Any:
        body = json.dumps(document).encode()
        head = f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        started = time.perf_counter()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            writer.write(head.encode() + body)
            status, answer = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._streams = None
            self._fault(type(error).__name__)
            return None
        self._seen.n_calls += 1
        if started >= self._seen.measured_from:
            self._seen.seconds[call].append(time.perf_counter() - started)
        if status != 200:
            self._fault(f"HTTP {status}")
            return None
        return json.loads(answer)

    def _fault(self, text: str) -> None:
        self._seen.faults[text] = self._seen.faults.get(text, 0) + 1


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


def clients(pipe: Any, address: str, token: str, names: list[str], options: argparse.Namespace) -> None:
    """One process of clients; sends what it saw."""

    async def run() -> Seen:
        seen = Seen()
        spread = options.processes / COMING
        start = asyncio.get_running_loop().time() + 1.0
        seen.measured_from = time.perf_counter() + 1.0 + len(names) * spread
        end = start + len(names) * spread + options.minutes * 60
        workers = [Worker(name, address, token, seen) for name in names]
        works = [w.work(start + i * spread, end, options.pace, cut=options.cut) for i, w in enumerate(workers)]
        await asyncio.gather(*works)
        seen.wall = time.perf_counter() - seen.measured_from
        return seen

    pipe.send(asyncio.run(run()))


@dataclass(frozen=True)
class Served:
    """A server with the study, and tokens of scopes ``work`` and ``submit``."""

    url: str
    pid: int
    token: str
    boss: str

    @property
    def address(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc


@contextmanager
def served() -> Iterator[Served]:
    """A real server on PostgreSQL, started for this."""
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        store = database(server)
        opened = open_store(store)
        now = datetime.now(UTC)
        token = opened.tokens.create("workers", ["work"], expires_at=None, now=now)
        boss = opened.tokens.create("boss", ["submit"], expires_at=None, now=now)
        opened.close()
        command = [sys.executable, "-m", "hpsearch", "serve", "--store", store, "--port", "0", "--log-level", "warning"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        try:
            headers = {"Authorization": f"Bearer {boss}"}
            httpx2.post(f"{url}/api/v1/studies", json=STUDY, headers=headers).raise_for_status()
            yield Served(url, process.pid, token, boss)
        finally:
            process.terminate()
            process.wait()


def resident(pid: int) -> float:
    """MB of memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def load(address: str, token: str, pid: int, options: argparse.Namespace) -> tuple[Seen, list[float]]:
    """Run the clients; the server's memory every ten seconds beside them."""
    context = mp.get_context("spawn")
    names = [f"worker-{i}" for i in range(options.workers)]
    running = []
    for i in range(options.processes):
        ours, theirs = context.Pipe()
        arguments = (theirs, address, token, names[i :: options.processes], options)
        process = context.Process(target=clients, args=arguments)
        process.start()
        theirs.close()
        running.append((process, ours))
    memory: list[float] = []
    seen, looked_at = Seen(), 0.0
    while any(process.is_alive() and not pipe.poll() for process, pipe in running):
        if not memory or time.monotonic() - looked_at >= 10:
            memory.append(resident(pid))
            looked_at = time.monotonic()
        time.sleep(0.2)
    for process, pipe in running:
        seen.add(pipe.recv())
        process.join()
    return seen, memory


def lost(url: str, token: str, seen: Seen) -> tuple[int, int]:
    """Steps and results that were answered for, and are not there."""
    there: dict[int, dict[str, Any]] = {}
    after = None
    with httpx2.Client(headers={"Authorization": f"Bearer {token}"}, timeout=120) as http:
        while True:
            params = {"limit": "1000"} | ({"after": after} if after else {})
            page = http.get(f"{url}/api/v1/studies/load/trials", params=params).json()
            there |= {trial["number"]: trial for trial in page["items"]}
            after = page["next"]
            if after is None:
                break
    steps = sum(there.get(number, {"step": 0})["step"] < step for number, step in seen.steps.items())
    results = sum(there.get(number, {"state": ""})["state"] != "completed" for number in seen.finished)
    return steps, results


def section(seen: Seen, memory: list[float], missing: tuple[int, int], options: argparse.Namespace) -> str:
    """The section of RESULTS.md."""
    n_reports = len(seen.seconds["report"])
    command = f"benchmarks.load --workers {options.workers} --minutes {options.minutes:g} --pace {options.pace:g}"
    lines = [
        "## Load",
        "",
        f"`python -m {command}`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}) for "
        f"clients, server and PostgreSQL together; load average {os.getloadavg()[1]:.1f}.",
        "",
        f"{options.workers:,} workers, each due to report once in {options.pace:g} s for {60 * options.minutes:g} s, "
        f"took {seen.wall:.0f} s: {n_reports:,} reports ({n_reports / seen.wall:,.0f}/s), "
        f"{len(seen.finished):,} trials finished.",
        "",
        "| call | n | median | p90 | p99 | worst |",
        "|---|---|---|---|---|---|",
    ]
    for call, took in seen.seconds.items():
        if len(took) > 1:
            cuts = statistics.quantiles(took, n=100)
            values = [statistics.median(took), cuts[89], cuts[98], max(took)]
            lines.append(f"| {call} | {len(took):,} | " + " | ".join(f"{1000 * v:,.0f} ms" for v in values) + " |")
    faults = ", ".join(f"{text}: {n}" for text, n in sorted(seen.faults.items())) or "none"
    middle = memory[len(memory) // 2]
    lines += [
        "",
        f"Lost: {missing[0]} steps and {missing[1]} results of those answered. Unexpected answers: {faults}.",
        f"The server's memory at the begin, in the middle and at the end: {memory[0]:.0f}, {middle:.0f}, "
        f"{memory[-1]:.0f} MB.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--pace", type=float, default=1.0, help="seconds between two reports of a worker")
    parser.add_argument("--processes", type=int, default=2, help="of clients")
    parser.add_argument("--cut", action="store_true", help="leave out what is still due in the end")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    with served() as server:
        seen, memory = load(server.address, server.token, server.pid, options)
        missing = lost(server.url, server.boss, seen)
    text = section(seen, memory, missing, options)
    print(text)
    if options.write:
        write(text)
    return 1 if any(missing) else 0


if __name__ == "__main__":
    sys.exit(main())
