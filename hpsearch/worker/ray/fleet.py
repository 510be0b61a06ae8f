"""As many workers on a Ray cluster as there is to do, between a least and a most number.

Ray places the actors, gives each its CPUs and its share of a GPU, and starts them again elsewhere when a node is lost;
what they do is :mod:`hpsearch.worker.ray.actor`. The driver, this process, looks once a second what waits at the server
and which actors have ended. It holds nothing that would be missed: when it is gone, Ray ends its actors.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from hpsearch._version import __version__
from hpsearch.errors import ClusterUnreachable, InvalidInput, ServerError, ServerRefused
from hpsearch.http import Connection
from hpsearch.worker.ray.actor import Ended, Orders, Ready, Worker
from hpsearch.worker.ray.cluster import Share, address_of, first_lines, room

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
STOP_SECONDS = 35.0
"""How long workers get to hand over before they are killed; they themselves try for 30."""
HEAR_SECONDS = 5.0
"""A worker that has not heard so long after that it is to stop has no process: it waits for a place."""
PLACE_SECONDS = 15.0
"""After so long without a place the driver says that workers wait for one."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Before a worker is started after one that failed."""


@dataclass(frozen=True, slots=True)
class Range:
    """How many workers there may be; ``high`` None: as many as the cluster has room for."""

    low: int = 1
    high: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidInput for an empty range."""
        if self.high is not None and self.high < max(1, self.low):
            raise InvalidInput(f"--min {self.low} --max {self.high}: the most is at least 1, and at least the least")


def n_wanted(n: int, *, starting: int, waiting: int, low: int, high: int) -> int:
    """How many workers there should be: one more for whatever waits and no worker that starts now will take.

    Never fewer than there are: those that have nothing to do end by themselves.

    Args:
        n: workers there are, those that start included.
        starting: of them.
        waiting: packs of trials, and checks of studies, that wait for a worker.
        low: the least number.
        high: the most.
    """
    return max(n, low, min(high, n + max(0, waiting - starting)))


@dataclass(eq=False, slots=True)
class _Member:
    """One actor; ``ready`` and ``end`` are references to what its methods will return."""

    actor: Any
    ready: Any
    end: Any
    stays: bool
    """It is one of the least number: it does not end when it has nothing to do."""
    asked_at: float = field(default_factory=time.monotonic)
    has_begun: bool = False


class Fleet:
    """The workers of one driver, which is connected to a cluster. Used from one thread.

    Args:
        orders: for all of them.
        name: the first part of their names.
        limits: how many.
        share: what each gets.
        idle_seconds: those above the least number end after so long without work.
        say: told what a user wants to know, a line each.
    """

    def __init__(
        self,
        orders: Orders,
        name: str,
        *,
        limits: Range,
        share: Share,
        idle_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self._orders = orders
        self._name = name
        self._limits = limits
        self._share = share
        self._idle_seconds = idle_seconds
        self._say = say
        self._server = Connection(orders["server"], token=orders["token"])
        self._members: list[_Member] = []
        self._n_made = 0
        self._kinds = {"train", *(("task", "python", "command") if orders["allow"] else ())}
        self._unfit: set[str] = set()
        """Nodes on which no worker can work."""
        self._troubled: set[str] = set()
        """Nodes of which it was said that they do not reach the server."""
        self._waited_before: int | None = None
        self._said_once: set[str] = set()
        self._pause = FIRST_PAUSE
        self._not_before = 0.0

    def run(self, stop: threading.Event) -> None:
        """Keep as many workers as there is work for, until told to stop; then have them give back what they hold.

        Raises:
            InvalidInput: there is no room for the least number, or no node on which a worker can work.
            ServerRefused: the server does not know the study, or the token.
            ClusterUnreachable: it is gone.
        """
        self._check_room()
        try:
            while not stop.is_set():
                self._take_begun()
                self._take_ended()
                self._grow()
                self._mention_place()
                stop.wait(LOOK_SECONDS)
        except ConnectionError as error:  # of Ray's client
            raise ClusterUnreachable("--on", first_lines(error)) from None
        finally:
            self._end()
            self._server.close()

    # -- how many -----------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        waiting = self._waiting()
        if time.monotonic() < self._not_before:
            return
        n, low = len(self._members), self._limits.low
        high = self._limits.high or max(low, room(self._share, without=self._unfit).n_workers)
        starting = sum(not member.has_begun for member in self._members)
        wanted = n_wanted(n, starting=starting, waiting=waiting, low=low, high=high)
        for _ in range(wanted - n):
            self._start()
        if wanted > n:
            self._tell(f"; {waiting} to do" if waiting else "")

    def _waiting(self) -> int:
        """What waits, packs and checks, now as at the look before: what idle workers take at once does not count."""
        params: dict[str, Any] = {"kinds": sorted(self._kinds)}
        if self._orders["study"] is not None:
            params["study"] = self._orders["study"]
        try:
            queue = self._server.call("GET", "/api/v1/leases", params=params)
        except ServerError as error:
            if isinstance(error, ServerRefused) and error.status < 500:
                raise
            self._warn_once("away", f"{error}; the workers that there are go on")
            return 0
        self._said_once.discard("away")
        if queue["version"] != __version__:
            self._warn_once(
                "version",
                f"the server is hpsearch {queue['version']} and this {__version__}: install the same version on both",
            )
        now = -(-int(queue["waiting"]) // (self._orders["width"] or 1)) + int(queue["checks"])
        before, self._waited_before = self._waited_before, now
        return now if before is None else min(before, now)

    def _start(self) -> None:
        stays = sum(member.stays for member in self._members) < self._limits.low
        options: dict[str, Any] = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus}
        if self._unfit:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._unfit))})"}
        # work, ready and stop each have a thread
        lasting = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 3}
        name = f"{self._name}/{self._n_made}"
        self._n_made += 1
        made = ray.remote(Worker).options(**options, **lasting)
        actor: Any = made.remote(__version__, self._orders, name, None if stays else self._idle_seconds)
        self._members.append(_Member(actor, actor.ready.remote(), actor.work.remote(), stays))

    def _tell(self, more: str = "") -> None:
        n = len(self._members)
        self._say(f"{n} worker{'s' if n != 1 else ''}{more}")

    # -- what becomes of them -----------------------------------------------------------------------------------

    def _take_begun(self) -> None:
        asked = {member.ready: member for member in self._members if not member.has_begun}
        for reference in _done(list(asked)):
            asked[reference].has_begun = True
            ready = _result(reference)
            if not isinstance(ready, Ready):
                continue  # its end says why
            self._kinds = set(ready.kinds)
            self._pause = FIRST_PAUSE
            if ready.trouble is not None and ready.node not in self._troubled:
                self._troubled.add(ready.node)
                self._say(
                    f"the node {address_of(ready.node)} does not reach the server: {ready.trouble}; its workers "
                    "wait. Give --server an address that every node knows"
                )

    def _take_ended(self) -> None:
        running = {member.end: member for member in self._members}
        ended = _done(list(running))
        for reference in ended:
            member = running[reference]
            self._members.remove(member)
            ray.kill(member.actor)
            self._judge(_result(reference))
        if ended:
            self._tell()

    def _judge(self, ended: Ended | RayError) -> None:
        """What the end of a worker means for those to come. Raises InvalidInput where none can work."""
        if isinstance(ended, RayError):
            if "ModuleNotFoundError" in str(ended) and "hpsearch" in str(ended):
                raise InvalidInput(
                    "a node of the cluster has no hpsearch, or one without Ray: pip install "
                    f"'hpsearch[train,ray]=={__version__}' on every node ({first_lines(ended)[:300]})"
                )
            log.error("a worker failed; another is started in %.0f s: %s", self._pause, ended)
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        elif ended.everywhere:
            raise InvalidInput(ended.fault or "")
        elif ended.fault is not None and ended.node not in self._unfit:
            fault = f"the node {address_of(ended.node)} can run no worker: {ended.fault}"
            self._unfit.add(ended.node)
            if not room(self._share, without=self._unfit).n_workers:
                raise InvalidInput(fault)
            self._say(f"{fault}. The others go on")

    def _mention_place(self) -> None:
        late = time.monotonic() - PLACE_SECONDS
        n = sum(not member.has_begun and member.asked_at < late for member in self._members)
        if n:
            self._warn_once(
                "place",
                f"{n} of {len(self._members)} workers wait for a place in the cluster with {self._share} each; it has "
                f"{room(self._share)}: end what else runs there, add nodes, or ask for less with --cpus and --gpus",
            )
        else:
            self._said_once.discard("place")

    def _check_room(self) -> None:
        there, low = room(self._share), self._limits.low
        if there.n_workers >= max(1, low):
            return
        asked = f"--min {low} needs {low} × {self._share}" if low else f"a worker needs {self._share}"
        text = f"{asked}; the cluster has {there}, room for {there.n_workers}"
        if low:
            raise InvalidInput(f"{text}: lower --min, --cpus or --gpus, or add nodes")
        self._say(f"{text}: workers wait until nodes are added")

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._said_once:
            self._said_once.add(about)
            log.warning("%s", text)

    # -- the end ------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Have all workers give back what they hold, and end; those that wait for a place hold nothing."""
        try:
            told = {member.actor.stop.remote(): member.end for member in self._members}
            heard = _done(list(told), seconds=HEAR_SECONDS)
            ends = [told[reference] for reference in heard]
            n_left = len(ends) - len(_done(ends, seconds=STOP_SECONDS))
            if n_left:
                log.warning("%d workers do not stop: they are killed, and their trials go to others", n_left)
            for member in self._members:
                ray.kill(member.actor)
        except (ConnectionError, RayError) as error:
            log.warning("the cluster is gone: %s", first_lines(error))


def _done(references: list[Any], seconds: float = 0) -> list[Any]:
    """Those that are there after so many seconds, waiting no longer than for all."""
    found: list[Any] = ray.wait(references, num_returns=len(references), timeout=seconds)[0] if references else []
    return found


def _result(reference: Any) -> Any:
    """What a method returned, or the error that it ended with."""
    try:
        return ray.get(reference)
    except RayError as error:
        return error
