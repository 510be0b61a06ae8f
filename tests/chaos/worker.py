"""A worker that only pretends to train, and keeps a journal of what the server acknowledged to it.

    python worker.py URL NAME FOLDER SKEW_HOURS

It needs nothing but Python, so that it starts in a moment: it will be killed soon. The study to work for stands in
``FOLDER/study``; each line of ``FOLDER/NAME-PID.jsonl`` is written before the next call is made.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

STEPS = 3


class Refused(Exception):
    """The server understood, and said no."""


class Worker:
    def __init__(self, url: str, name: str, folder: Path) -> None:
        self.address, self.name, self.folder = urlsplit(url).netloc, name, folder
        self.session = f"{name}-{os.getpid()}-{random.getrandbits(32)}"
        self.journal = (folder / f"{name}-{os.getpid()}.jsonl").open("a", buffering=1)
        self.http: http.client.HTTPConnection | None = None
        self.started = time.time()  # by a clock that may be wrong by hours

    def note(self, kind: str, **more: Any) -> None:
        self.journal.write(json.dumps({"kind": kind, **more}) + "\n")

    def call(self, path: str, body: dict[str, Any]) -> Any:
        """The answer; asked again until there is one."""
        pause = 0.05
        while True:
            try:
                if self.http is None:
                    self.http = http.client.HTTPConnection(self.address, timeout=5)
                self.http.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                response = self.http.getresponse()
                data = response.read()
                if response.status < 300:
                    return json.loads(data)
                if response.status < 500:
                    raise Refused(f"{response.status}: {data[:300]!r}")
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                if self.http is not None:
                    self.http.close()
                self.http = None
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 1.0)

    def lease(self, capacity: int) -> list[dict[str, Any]]:
        body = {"worker": self.name, "session": self.session, "capacity": capacity, "wait_seconds": 0.5}
        body |= {"study": (self.folder / "study").read_text(), "info": {"clock": self.started}}
        leases: list[dict[str, Any]] = self.call("/api/v1/leases", body)["leases"]
        for lease in leases:
            self.note("leased", **{key: lease[key] for key in ("token", "study", "trial", "attempt")})
        return leases

    def work(self) -> None:
        leases = self.lease(random.choice((1, 1, 2, 4)))
        if not leases:
            return
        if leases[0]["trial"] % 17 == 3:  # one that asks again while it holds trials
            leases = self.lease(len(leases)) or leases
        values = {lease["token"]: lease["trial"] + random.random() for lease in leases}
        stopped: set[str] = set()
        last = 0
        while last < STEPS:
            first, last = last + 1, min(STEPS, last + random.choice((1, 1, 2, 3)))  # some are told together
            going = [token for token in values if token not in stopped]
            if not going:
                break
            told = [(token, step, values[token] + 1 / step) for step in range(first, last + 1) for token in going]
            reports = [{"token": token, "step": step, "metrics": {"loss": value}} for token, step, value in told]
            answer = self.call("/api/v1/leases/report", {"worker": self.name, "reports": reports})
            for decision, (token, step, value) in zip(answer["decisions"], told, strict=True):
                if decision["action"] == "abandon":
                    self.note("abandoned", token=token, reason=decision["reason"])
                    continue  # a result is sent in spite of that: it must be refused
                self.note("reported", token=token, step=step, value=value)
                if decision["action"] == "stop":
                    stopped.add(token)
            time.sleep(random.uniform(0, 0.03))
        results = [
            {"token": token, "state": "pruned"}
            if token in stopped
            else {"token": token, "state": "completed", "value": value}
            for token, value in values.items()
        ]
        for result in results:
            self.note("sent", **result)
        answer = self.call("/api/v1/leases/finish", {"worker": self.name, "results": results})
        for outcome, result in zip(answer["outcomes"], results, strict=True):
            self.note("accepted" if outcome["accepted"] else "refused", **(result | {"reason": outcome["reason"]}))


def main() -> None:
    url, name, folder, skew = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
    right = time.time
    time.time = lambda: right() + skew * 3600
    worker = Worker(url, name, folder)
    while not (folder / "stop").exists():
        try:
            worker.work()
        except Refused as error:  # the study has ended, or another is begun
            worker.note("error", text=str(error))
            time.sleep(0.2)


if __name__ == "__main__":
    main()
