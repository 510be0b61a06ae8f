"""An ordinary worker as an actor, which Ray places, starts, and starts again elsewhere.

What it is given are values of Python alone, so that a node with another version of hpsearch can say so.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from hpsearch import logs
from hpsearch._version import __version__
from hpsearch.errors import HpsearchError, InvalidInput, ServerRefused, ServerUnreachable
from hpsearch.http import Connection
from hpsearch.worker.loop import work
from hpsearch.worker.runners import Equipment, runners
from hpsearch.worker.session import Recorder, Session

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
"""How often an actor looks whether it has been idle for too long."""


class Orders(TypedDict):
    """What every worker of a fleet is started with; paths are texts, all else as the command's options."""

    server: str
    token: str | None
    study: str | None
    pack: str
    width: int | None
    threads: int
    checkpoints: str | None
    checkpoint_seconds: float
    allow: list[str]
    folders: list[str]
    home: str
    data_root: str | None
    tensorboard: str | None
    log_level: int
    log_format: logs.Format


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that asks for trials from now on.

    Attributes:
        kinds: of objectives that it can run.
        trouble: why it does not reach the server, None if it does.
    """

    node: str
    kinds: tuple[str, ...]
    trouble: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended.

    Attributes:
        fault: why it could not work, None if it was told to stop or had nothing to do.
        everywhere: whether that holds on any node: the server refuses it.
    """

    node: str
    fault: str | None = None
    everywhere: bool = False


class Worker:
    """The actor. :meth:`work` runs until the others tell it to stop, each called in a thread of its own.

    Args:
        version: of hpsearch at the driver.
        orders: see :class:`Orders`.
        name: stable identity of the worker, also where it is started again.
        idle_seconds: it ends after it had nothing to do for so long; None: never.
    """

    def __init__(self, version: str, orders: Orders, name: str, idle_seconds: float | None) -> None:
        os.environ["OMP_NUM_THREADS"] = str(orders["threads"])
        logs.configure(orders["log_level"], orders["log_format"])
        self._version = version
        self._orders = orders
        self._name = name
        self._idle_seconds = idle_seconds
        self._stop = threading.Event()
        self._begun = threading.Event()
        self._ready: Ready | None = None

    def ready(self) -> Ready | None:
        """Wait until it asks for trials; None if it ended before."""
        self._begun.wait()
        return self._ready

    def stop(self) -> None:
        """Have it give its trials back and end."""
        self._stop.set()

    def work(self) -> Ended:
        """Lease and run trials, until told to stop or idle for too long."""
        node = node_id()
        try:
            self._check()
            self._work(node)
        except ServerRefused as error:
            return Ended(node, f"the server {self._orders['server']} refuses its workers: {error}", everywhere=True)
        except HpsearchError as error:
            return Ended(node, str(error))
        finally:
            self._begun.set()
        return Ended(node)

    def _check(self) -> None:
        """Raise InvalidInput where this node is not as the others are."""
        if self._version != __version__:
            raise InvalidInput(
                f"it has hpsearch {__version__}, and the workers were asked for by {self._version}: install the same "
                "version on every node"
            )
        folders = self._orders["folders"]
        if absent := [folder for folder in folders if not Path(folder).is_dir()]:
            raise InvalidInput(f"it has no folder {absent[0]}, given with --path: {_HOW_TO_BRING}")
        if missing := missing_code(self._orders["allow"], [*folders, self._orders["home"]]):
            raise InvalidInput(f"it has not the code of {missing}, given with --allow: {_HOW_TO_BRING}")

    def _work(self, node: str) -> None:
        orders = self._orders
        _check_gpu(device())
        # Closed in the end, for the process lives on for a while, and a request for trials with it.
        closing = contextlib.closing(Connection(orders["server"], token=orders["token"]))
        with closing as connection, runners(self._equipment()) as (chosen, found):
            trouble = _trouble(connection)
            info = {"device": chosen, "threads": orders["threads"], "pack": orders["pack"], "node": node}
            session = Session(connection, self._name, info, self._stop, _recorder(orders["tensorboard"]))
            if self._idle_seconds is not None:
                threading.Thread(target=self._watch, args=(session,), name="idle", daemon=True).start()
            self._ready = Ready(node, tuple(found), trouble)
            self._begun.set()
            work(session, found, study=orders["study"])

    def _equipment(self) -> Equipment:
        orders = self._orders
        home = [Path(orders["home"])] if Path(orders["home"]).is_dir() else []
        return Equipment(
            device=device(),
            threads=orders["threads"],
            width=orders["width"],
            checkpoints=orders["checkpoints"],
            checkpoint_seconds=orders["checkpoint_seconds"],
            allow=orders["allow"],
            folders=[*map(Path, orders["folders"]), *home],
            data_root=Path(orders["data_root"]) if orders["data_root"] else (home or [Path.cwd()])[0],
        )

    def _watch(self, session: Session) -> None:
        """End a worker that has nothing to do; what it is handed in that moment it gives back."""
        assert self._idle_seconds is not None
        while not self._stop.wait(WATCH_SECONDS):
            if session.idle_seconds > self._idle_seconds:
                self._stop.set()


_HOW_TO_BRING = (
    "share that folder between the nodes, install the code on each, or start the workers with "
    "'ray job submit --working-dir'"
)


def missing_code(allow: Sequence[str], folders: Sequence[str]) -> str | None:
    """The first pattern whose module or program is not on this node; None if all are.

    Patterns that leave the module or program open are not looked for. Nothing is imported.
    """
    places = [*folders, os.getcwd()]
    for pattern in allow:
        code, colon, _ = pattern.partition(":")
        if any(letter in code for letter in "*?["):
            continue
        if colon and not _find_module(code, places):
            return pattern
        if not colon and not _find_program(code, places):
            return pattern
    return None


def _find_module(name: str, places: list[str]) -> bool:
    top = name.partition(".")[0]
    return top in sys.builtin_module_names or bool(importlib.machinery.PathFinder.find_spec(top, [*places, *sys.path]))


def _find_program(name: str, places: list[str]) -> bool:
    from hpsearch.worker.command import find

    return find(name, places)[0] is not None


def _check_gpu(given: str) -> None:
    """Raise InvalidInput where torch does not see the GPU that Ray gave."""
    if given == "cpu":
        return
    try:
        from hpsearch.training.devices import devices  # torch, which code of users may do without
    except ModuleNotFoundError:
        return
    if given not in devices():
        raise InvalidInput(
            "torch does not see the GPU that Ray gave it: install torch for CUDA there, or leave --gpus out"
        )


def _trouble(connection: Connection) -> str | None:
    """Why the server does not answer here, None if it does; it may come. Raises ServerRefused for a wrong token."""
    try:
        connection.call("GET", "/api/v1/leases", timeout_seconds=5)
    except ServerUnreachable as error:
        return str(error)
    except ServerRefused as error:
        if error.status in (401, 403):
            raise
        return str(error)
    return None


def _recorder(folder: str | None) -> Recorder | None:
    if folder is None:
        return None
    try:
        from hpsearch.worker.tensorboard import TensorBoard  # heavy, and an extra
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"it has no {error.name}: pip install 'hpsearch[train,tensorboard]' there for --tensorboard"
        ) from None
    return TensorBoard(folder)


def node_id() -> str:
    """Of the node that this actor is on."""
    import ray  # an extra

    node: str = ray.get_runtime_context().get_node_id()
    return node


def device() -> str:
    """What Ray gave this actor: of the GPUs that it lets it see the first, else the CPU."""
    import ray  # an extra

    return "cuda:0" if ray.get_gpu_ids() else "cpu"
