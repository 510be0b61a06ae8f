"""Runs ``kind: python``: the user's function, in a process of its own that stays warm between trials."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Unpack

from hpsearch.allow import allowed, refusal
from hpsearch.objective import PythonObjective
from hpsearch.trial import Result, TrialState
from hpsearch.worker.folders import Folder
from hpsearch.worker.handing import Results
from hpsearch.worker.own_code import OwnCodeRunner, Setting, check
from hpsearch.worker.own_trial import LOG_BYTES, OwnTrial
from hpsearch.worker.program import Guard, Program, Tail, said
from hpsearch.worker.session import Channel, LeasedTrial, PreflightTask

KEPT_CHILDREN = 2
"""Processes kept warm, each for one entry point."""


class PythonRunner(OwnCodeRunner):
    """Calls functions of users. For the arguments see :class:`hpsearch.worker.own_code.OwnCodeRunner`."""

    checks = True

    def __init__(self, **setting: Unpack[Setting]) -> None:
        super().__init__(**setting)
        self._children: dict[str, Child] = {}

    def preflight(self, task: PreflightTask, session: Channel) -> None:
        """See :class:`hpsearch.worker.loop.Runner`: that the entry point is allowed, and can be called."""
        entrypoint = PythonObjective.model_validate(task.objective).entrypoint
        if not allowed(entrypoint, self._allow):
            session.checked(task, [check("allow", refusal(entrypoint), "")])
            return
        began = time.monotonic()
        loaded = self._child(entrypoint, session, Tail(LOG_BYTES))
        fault = loaded if isinstance(loaded, str) else None
        message = f"{entrypoint} was imported in {time.monotonic() - began:.1f} s, and can be called"
        session.checked(task, [check("entrypoint", fault, message)])

    def close(self) -> None:
        """End the processes."""
        while self._children:
            self._drop(next(iter(self._children)))
        self._guard.close()

    def _run(self, session: Channel, lease: LeasedTrial, results: Results) -> None:
        objective = PythonObjective.model_validate(lease.objective)
        trial = OwnTrial(lease, session, objective.limits)
        entrypoint = objective.entrypoint
        if not allowed(entrypoint, self._allow):
            results.add(Result(lease.token, TrialState.FAILED, None, refusal(entrypoint)))
            return
        child = self._child(entrypoint, session, trial.log)
        if isinstance(child, str):
            if session.stop.is_set():
                session.release([lease.token])
            else:
                results.add(Result(lease.token, TrialState.FAILED, None, child), log=trial.log.text())
            return
        folder = self._checkpoints.open(lease)
        ended = self._call(child, trial, folder, objective.params)
        result = _ended(ended, trial, folder, child)
        self._checkpoints.end(lease, folder, max(1, trial.step), result)
        if not child.is_well:
            self._drop(entrypoint)
        self._hand_over(trial, result, results, session)

    @staticmethod
    def _call(child: Child, trial: OwnTrial, folder: Folder, params: dict[str, Any]) -> dict[str, Any] | None:
        """Have a trial run; how it ended as the child says, None if it said nothing more."""
        lease = trial.lease
        document = {
            "params": {**params, **lease.params},
            "seed": lease.seed,
            "epochs": lease.epochs,
            "checkpoint_dir": str(folder.path),
            "number": lease.trial,
            "study": lease.study,
            "stage": lease.stage,
        }
        child.send({"trial": document, "metric": lease.metric["name"]})
        while True:
            message = child.answer(trial.log, lambda: trial.look(child.program))
            if message is None or "step" not in message:
                child.program.spare()
                return message
            stop = trial.report(int(message["step"]), message["metrics"])
            folder.save()
            child.send({"stop": stop})

    def _child(self, entrypoint: str, session: Channel, log: Tail) -> Child | str:
        """The process of an entry point, started if there is none; or why it cannot be used."""
        if (child := self._children.pop(entrypoint, None)) is None:
            while len(self._children) >= KEPT_CHILDREN:
                self._drop(next(iter(self._children)))
            child = Child(self._guard, self._places[0], self._environment)
            child.send({"entrypoint": entrypoint, "folders": self._places})
            loaded = child.answer(log, lambda: child.program.stop(0) if session.stop.is_set() else None)
            fault = child.end if loaded is None else loaded["fault"]
            if fault is not None:
                child.close()
                return f"{entrypoint}: importing it: {fault}" if loaded is None else str(fault)
            self._pace.begin()  # it is imported once, not for each trial
        self._children[entrypoint] = child
        return child

    def _drop(self, entrypoint: str) -> None:
        self._children.pop(entrypoint).close()


class Child:
    """A process of :mod:`hpsearch.worker.child`.

    Args:
        guard: who ends it if this process is gone.
        folder: where it runs.
        env: its environment.
    """

    def __init__(self, guard: Guard, folder: str, env: dict[str, str]) -> None:
        self._connection, theirs = socket.socketpair()
        argv = [sys.executable, "-P", "-m", "hpsearch.worker.child", str(theirs.fileno())]
        with theirs:
            self.program = Program(
                argv, guard=guard, cwd=folder, env=env, connection=(self._connection, theirs), stop_all=False
            )
        self._buffer = b""

    @property
    def is_well(self) -> bool:
        """Whether it can be given another trial."""
        return self.program.status is None

    @property
    def end(self) -> str:
        """How it ended."""
        status = self.program.status
        return "the process does not answer" if status is None else f"the process of the objective: {said(status)}"

    def send(self, message: dict[str, Any]) -> None:
        """Say something; a process that is gone does not hear it."""
        with contextlib.suppress(OSError):  # what it leaves unsaid is noticed by answer
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def answer(self, log: Tail, look: Callable[[], None]) -> dict[str, Any] | None:
        """The next thing that it says, its output going to a log; None if it is gone. ``look`` is called meanwhile."""
        while b"\n" not in self._buffer:
            is_over = self.program.status is not None
            self._take(self.program.rest() if is_over else self.program.read(), log)
            if is_over and b"\n" not in self._buffer:
                return None
            look()
        self._take(self.program.rest(), log)  # what it printed before it said this
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _take(self, found: dict[str, bytes], log: Tail) -> None:
        for name, data in found.items():
            if name == "connection":
                self._buffer += data
            else:
                log.add(data)

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self.program.close()


def _ended(ended: dict[str, Any] | None, trial: OwnTrial, folder: Folder, child: Child) -> Result | None:
    """The result of a trial; what it returned is a metric of its last step, too."""
    if ended is None:
        return trial.result(fault=child.end)
    value = ended.get("value")
    result = trial.result(value=value, fault=ended.get("fault"), stopped=ended.get("stopped"), note=folder.note)
    if result is not None and value is not None and trial.end is None:
        trial.add({**ended["metrics"], trial.lease.metric["name"]: value})
    return result
