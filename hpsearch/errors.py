"""Every error that hpsearch raises on purpose.

HpsearchError
├── InvalidInput            what was given breaks a rule; the text names the value and the rule
│   ├── InvalidSpec         a study document, with one entry per place
│   └── DataError           training data that cannot be used
├── NotFound                no study, stage, trial or figure of that name
├── Conflict                the request contradicts the state of the study
├── TooMuch                 a request for more than the server's limits allow
├── TooMany                 something is used up for now: try again later
├── StoreError              the database
│   ├── StoreUnreachable    it does not answer, or refuses us
│   ├── StoreInUse          another server holds the SQLite file
│   └── StoreFull           no space left; nothing was written
├── ServerError             the HTTP server, seen from a client
│   ├── ServerUnreachable   it does not answer
│   │   └── ClusterUnreachable  no more does the Ray cluster that workers were to run on
│   └── ServerRefused       it answered with a problem
├── TrialStopped            raised inside an objective when its trial is to stop
├── OutOfMemory             a pack does not fit into its device
└── Interrupted             training was told to stop in mid-epoch
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class HpsearchError(Exception):
    """Root of the tree."""


class InvalidInput(HpsearchError):
    """What was given breaks a rule."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong place in a document.

    Attributes:
        loc: dotted path from the root of the document, empty for the document itself.
        msg: the value, the rule, and what to do.
    """

    loc: str
    msg: str

    def __str__(self) -> str:
        return f"{self.loc}: {self.msg}" if self.loc else self.msg


class InvalidSpec(InvalidInput):
    """A study document that breaks a rule, with every place that does."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("; ".join(str(fault) for fault in faults))


class DataError(InvalidInput):
    """Training data that cannot be used: missing, unreadable, empty, or with labels out of range."""


class NotFound(HpsearchError):
    """Nothing of that kind has that name."""

    def __init__(self, kind: str, name: object) -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"there is no {kind} {name!r}")


class Conflict(HpsearchError):
    """The request contradicts what is there."""


class TooMuch(HpsearchError):
    """A request for more than a limit of the server allows."""

    def __init__(self, what: str, limit: int, name: str) -> None:
        super().__init__(f"{what}: at most {limit}, the server's limit {name!r}")


class TooMany(HpsearchError):
    """Something is used up for now.

    Attributes:
        retry_seconds: when to try again.
    """

    def __init__(self, what: str, limit: int, name: str, *, retry_seconds: int) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(f"{what}: at most {limit}, the server's limit {name!r}; try again later")


class StoreError(HpsearchError):
    """The database could not do what was asked; nothing was written."""


class StoreUnreachable(StoreError):
    """The database does not answer or refuses us."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"the store {url} cannot be reached: {reason}; check the URL given as --store")


class StoreInUse(StoreError):
    """Another server has the SQLite file."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(
            f"{path} is in use by another hpsearch server{holder}: stop that one, talk to it with --server, "
            "or give this one another file with --store"
        )


class StoreFull(StoreError):
    """The disk or quota is full."""

    def __init__(self, url: str) -> None:
        super().__init__(f"no space is left for the store {url}: free some and try again; nothing was written")


class ServerError(HpsearchError):
    """The server, seen from a client."""


class ServerUnreachable(ServerError):
    """The server does not answer."""

    def __init__(self, url: str, reason: str) -> None:
        self.url = url
        super().__init__(
            f"the server {url} cannot be reached ({reason}): start it with 'hpsearch serve' or give --server"
        )


class ClusterUnreachable(ServerUnreachable):
    """The Ray cluster does not answer."""

    def __init__(self, address: str, reason: str) -> None:
        self.url = address
        how = "start it with 'ray start --head' (for ray:// with --ray-client-server-port=10001 there), or give another"
        HpsearchError.__init__(self, f"the Ray cluster {address} cannot be reached ({reason}): {how}")


class ServerRefused(ServerError):
    """The server answered with a problem (RFC 9457).

    Attributes:
        status: HTTP status code.
        problem: the problem document, empty if the body was none.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        faults = [str(Fault(e["loc"], e["msg"])) for e in problem.get("errors", [])]
        text = problem.get("detail") or problem.get("title") or f"HTTP status {status}"
        super().__init__("\n".join(faults) if faults else text)


class TrialStopped(HpsearchError):
    """The trial is to stop now: the server said so in answer to a report."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class OutOfMemory(HpsearchError):
    """A pack does not fit into the memory of its device: train its members in narrower ones."""

    def __init__(self, n_members: int, device: str) -> None:
        self.n_members = n_members
        trials = "one trial does" if n_members == 1 else f"a pack of {n_members} trials does"
        super().__init__(f"{trials} not fit into the memory of {device}")


class Interrupted(HpsearchError):
    """Training was told to stop in mid-epoch. The pack is of no further use: its trials start anew elsewhere."""


class WouldWait(Exception):
    """What must not wait cannot be done at once, and is not done: a sign to the caller, never told to a user."""
