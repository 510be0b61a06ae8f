"""A server as a process, and trials that arrive at it over HTTP, for the tests of pages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any


class Server:
    """A real ``hpsearch serve`` process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.url = ""
        self.start()

    def start(self) -> None:
        store = f"sqlite:///{self.folder / 'pages.db'}"
        command = [sys.executable, "-m", "hpsearch", "serve", "--port", str(self.port), "--store", store]
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        log.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving http://"), (self.folder / "log").read_text()
        self.url = line.split()[1]
        self.port = int(self.url.rsplit(":", 1)[1])

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response) if response.status != 204 else None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1{path}", timeout=20) as response:
            return json.load(response)

    def submit(self, name: str, *, trials: int = 60, notes: str = "", **more: Any) -> None:
        space = {
            "lr": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
            "reg": {"type": "float", "low": 1e-5, "high": 1e5, "log": True},
        }
        document = {
            "name": name,
            "notes": notes,
            "objective": {"kind": "external"},
            "metric": {"name": "score", "direction": "maximize"},
            "space": space,
            "stages": [{"name": "coarse", "trials": trials, "epochs": 2}],
            **more,
        }
        self.post("/studies", document)

    def lease(self, study: str, n: int) -> list[dict[str, Any]]:
        leases: list[dict[str, Any]] = []
        while len(leases) < n:
            asked = {"worker": "tester", "capacity": n, "study": study, "wait_seconds": 5}
            leases = self.post("/leases", asked)["leases"]
        return leases

    def finish(self, leases: list[dict[str, Any]]) -> None:
        for step in (1, 2):
            reports = [
                {"token": lease["token"], "step": step, "metrics": {"score": step * float(lease["params"]["lr"])}}
                for lease in leases
            ]
            self.post("/leases/report", {"worker": "tester", "reports": reports})
        results = [{"token": lease["token"], "state": "completed"} for lease in leases]
        self.post("/leases/finish", {"worker": "tester", "results": results})

    def feed(self, study: str, n: int) -> None:
        """Lease and finish ``n`` trials."""
        self.finish(self.lease(study, n))
