"""A Ray cluster: being its driver, what its nodes have, and how many workers fit."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray

from hpsearch.errors import ClusterUnreachable, InvalidInput

log = logging.getLogger(__name__)

REACH_SECONDS = 5.0
CLIENT_PORT = 10001
"""Where the head node of a cluster listens for clients, unless it is told otherwise."""
N_TRIES = 3
"""How often a cluster is asked for the process that serves a client; see :func:`_join`."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker gets of a node.

    Attributes:
        cpus: > 0; above 1 a whole number.
        gpus: 0 to 1; two workers with 0.5 share a GPU.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Raise InvalidInput for what Ray does not give."""
        if not 0 < self.cpus < math.inf or (self.cpus > 1 and self.cpus != int(self.cpus)):
            raise InvalidInput(f"--cpus {self.cpus:g}: give a whole number, or a fraction between 0 and 1")
        if not 0 <= self.gpus <= 1:
            raise InvalidInput(f"--gpus {self.gpus:g}: a worker uses one GPU: give 1, or a fraction that several share")

    def fits(self, resources: dict[str, float]) -> int:
        """How many such workers a node with these resources holds. A fraction of a GPU is one of a single GPU."""
        n = int(resources.get("CPU", 0) / self.cpus + 1e-9)
        return min(n, int(1 / self.gpus + 1e-9) * int(resources.get("GPU", 0))) if self.gpus else n

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus:g} CPU{gpus}"


@dataclass(frozen=True, slots=True)
class Room:
    """What the nodes of a cluster have together.

    Attributes:
        n_workers: how many workers of a share fit, if nothing else ran there.
    """

    n_nodes: int
    cpus: float
    gpus: float
    n_workers: int

    def __str__(self) -> str:
        nodes = "1 node" if self.n_nodes == 1 else f"{self.n_nodes} nodes"
        return f"{self.cpus:g} CPU and {self.gpus:g} GPU on {nodes}"


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


def room(share: Share, *, without: Collection[str] = ()) -> Room:
    """What the living nodes have, but for those named."""
    nodes = [node["Resources"] for node in _nodes() if node["Alive"] and node["NodeID"] not in without]
    cpus, gpus = (sum(resources.get(name, 0.0) for resources in nodes) for name in ("CPU", "GPU"))
    return Room(len(nodes), cpus, gpus, sum(map(share.fits, nodes)))


def address_of(node: str) -> str:
    """What a user calls a node: its address, and its id where several have the same."""
    addresses = {each["NodeID"]: str(each["NodeManagerAddress"]) for each in _nodes()}
    found = addresses.get(node, "?")
    return found if list(addresses.values()).count(found) == 1 else f"{found} ({node[:8]})"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of a cluster: ``ray://HOST:PORT``, ``auto`` (the one of this machine) or ``local`` (a new one).

    Raises:
        InvalidInput: no such address, or a cluster of another version of Ray or Python.
        ClusterUnreachable: nobody is there.
    """
    if address not in ("auto", "local") and not address.startswith("ray://"):
        raise InvalidInput(f"--on {address}: give ray://HOST:PORT, auto for the cluster of this machine, or local")
    _check_reachable(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    logging.getLogger("ray").setLevel(logging.WARNING)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        _join(address, **options)
    except (ConnectionError, TimeoutError) as error:
        raise ClusterUnreachable(address, first_lines(error)) from None
    except RuntimeError as error:
        if "ersion" not in str(error):
            raise
        raise InvalidInput(
            f"the cluster {address} has another version: {first_lines(error)}: install here what is there"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str, **options: Any) -> None:
    """Call ``ray.init``, again where the cluster answered and could not start a process for this client.

    It starts one for each client of ``ray://``. It forks for that while its threads are in gRPC, whose handlers of
    forks end the child now and then, above all that of the first client; ``GRPC_ENABLE_FORK_SUPPORT=0`` on the head
    avoids it. Ray gives up such a client after ``RAY_CLIENT_RECONNECT_GRACE_PERIOD``, 30 s.
    """
    for n_left in reversed(range(N_TRIES)):
        try:
            ray.init(address, logging_level=logging.WARNING, **options)
        except ConnectionAbortedError as error:
            if not n_left:
                raise
            log.warning(
                "the Ray cluster %s did not start this client's server; once more: %s", address, last_line(error)
            )
        else:
            return


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes, and says little."""
    if address in ("auto", "local"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise InvalidInput(
            f"--on {address}: give ray://HOST:PORT, the port of the head for clients, often {CLIENT_PORT}"
        )
    try:
        socket.create_connection((host, port), REACH_SECONDS).close()
    except OSError as error:
        raise ClusterUnreachable(address, str(error)) from None


def last_line(error: Exception) -> str:
    """What a traceback of Ray's comes to."""
    return str(error).strip().rpartition("\n")[2]


def first_lines(error: Exception) -> str:
    """What an error of Ray's says before it explains itself, on one line."""
    return " ".join(str(error).split("\n\n", maxsplit=1)[0].split())
