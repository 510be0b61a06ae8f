"""A Ray cluster of several nodes on this machine, in a process of its own; see :class:`Nodes`.

    python ray_nodes.py CLIENT_PORT

reads lines ``add NAME CPUS GPUS {"ENVIRONMENT": "VALUE"}``, ``kill NAME`` and ``end``, and answers each with one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

SMALL = 80 * 2**20
"""Bytes of a node's object store, which workers do not use; Ray wants 75 MiB."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",  # a node that was killed refuses connections: it is noticed in 2 s, not in 15
    "RAY_health_check_failure_threshold": "4",
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # else one in ten first clients finds no server, see hpsearch.worker.ray.cluster
}
FIRST_CLIENT = 23000
"""The port of the server that Ray starts for the first client."""


class Nodes:
    """Starts a cluster whose head has no CPU: what runs, runs on nodes that are added. A context manager.

    Attributes:
        url: for ``--on``.
        environment: with which ``--on auto`` finds it.
    """

    def __init__(self) -> None:
        self.url = f"ray://127.0.0.1:{_free_port()}"
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # names of sockets are short
        self._log = (self._folder / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.url.rsplit(":", 1)[1], str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **SETTINGS},
            start_new_session=True,
        )
        self.environment = {"RAY_ADDRESS": self._answer()}

    def add(self, name: str, *, cpus: float = 1, gpus: float = 0, **environment: str) -> str:
        """Add a node; its id."""
        return self._ask(f"add {name} {cpus} {gpus} {json.dumps(environment)}")

    def kill(self, name: str) -> None:
        """End a node as a loss of power does: everything that runs on it, at once."""
        self._ask(f"kill {name}")

    @property
    def _logs(self) -> Path:
        return self._folder / "session_latest" / "logs"

    def client_logs(self) -> str:
        """What the servers of this cluster's clients have said."""
        return "\n".join(
            f"-- {log.name}\n{log.read_text()}" for log in sorted(self._logs.glob("ray_client_server*.err"))
        )

    @contextlib.contextmanager
    def without_client_servers(self, n: int) -> Iterator[None]:
        """The head fails to start the server of the next ``n`` clients: it cannot write their logs."""
        used = [int(log.stem.rpartition("_")[2]) for log in self._logs.glob("ray_client_server_2*.err")]
        ports = range(max(used, default=FIRST_CLIENT - 1) + 1, FIRST_CLIENT + 1000)  # a client has the next free one
        links = [self._logs / f"ray_client_server_{port}.err" for port in islice(filter(_is_free, ports), n)]
        for link in links:
            link.symlink_to("/nowhere/to/be/found")
        try:
            yield
        finally:
            for link in links:
                link.unlink()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise AssertionError((self._folder / "log").read_text()[-3000:])

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError, AssertionError):
            self._ask("end")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as tried, contextlib.suppress(OSError):
        tried.bind(("", port))
        return True
    return False


def _family(pid: int) -> list[int]:
    """A process and all below it, by ``/proc``."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def _kill(node: Any) -> None:
    for process_type in list(node.all_processes):
        for info in node.all_processes[process_type]:
            for pid in _family(info.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _say(text: str) -> None:
    sys.stdout.write(f"> {text}\n")
    sys.stdout.flush()


def main() -> None:
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "object_store_memory": SMALL,
        "ray_client_server_port": int(sys.argv[1]),
        "include_dashboard": False,
        "include_log_monitor": True,
        "temp_dir": sys.argv[2],
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[str, Any] = {}
    _say(cluster.address)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "end":
            break
        if verb == "add":
            name, cpus, gpus, environment = rest.split(" ", 3)
            os.environ.update(given := json.loads(environment))
            node = cluster.add_node(num_cpus=float(cpus), num_gpus=float(gpus), object_store_memory=SMALL)
            for key in given:
                del os.environ[key]
            nodes[name] = node
            _say(node.node_id)
        if verb == "kill":
            node = nodes.pop(rest)
            _kill(node)
            cluster.remove_node(node, allow_graceful=False)
            cluster.wait_for_nodes()
            _say("killed")
    cluster.shutdown()  # type: ignore[no-untyped-call]
    _say("ended")


if __name__ == "__main__":
    main()
