"""Runs ``kind: command``: any program, one process for each trial."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from hpsearch.allow import allowed, refusal
from hpsearch.objective import CommandObjective
from hpsearch.objective.command import OF_TRIAL, as_text, variable
from hpsearch.trial import Result, TrialState
from hpsearch.worker.folders import Folder
from hpsearch.worker.handing import Results
from hpsearch.worker.mailbox import Mailbox
from hpsearch.worker.own_code import OwnCodeRunner, Setting, check
from hpsearch.worker.own_trial import End, OwnTrial
from hpsearch.worker.program import Program, Tail, said
from hpsearch.worker.session import Channel, LeasedTrial, PreflightTask

TEMPORARY, DIVERGED = 75, 80
"""Exit statuses with a meaning beside 0: try the trial once more (``EX_TEMPFAIL`` of sysexits.h); it has diverged."""
MAX_TEMPORARY = 3
"""A trial that ended as temporary so often on one worker has failed."""
LONGEST_LINE = 2**20
SHOWN_BYTES = 1200
_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class CommandRunner(OwnCodeRunner):
    """Runs programs of users. For the arguments see :class:`hpsearch.worker.own_code.OwnCodeRunner`."""

    checks = True

    def __init__(self, **setting: Unpack[Setting]) -> None:
        super().__init__(**setting)
        self._temporary: Counter[tuple[str, int]] = Counter()
        self._scratch = Path(tempfile.mkdtemp(prefix="hpsearch-"))
        self._mailbox = Mailbox()

    def preflight(self, task: PreflightTask, session: Channel) -> None:
        """See :class:`hpsearch.worker.loop.Runner`: that the program is allowed, and there."""
        program = CommandObjective.model_validate(task.objective).argv[0]
        if not allowed(program, self._allow):
            session.checked(task, [check("allow", refusal(program), "")])
            return
        found, _ = find(program, self._places)
        session.checked(
            task, [check("command", None if found else missing(program, self._places), f"{program} is {found}")]
        )

    def close(self) -> None:
        """Let go of the guard, of the mailbox, and of the folder with params and metrics."""
        self._guard.close()
        self._mailbox.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _run(self, session: Channel, lease: LeasedTrial, results: Results) -> None:
        objective = CommandObjective.model_validate(lease.objective)
        program = objective.argv[0]
        path, cwd = find(program, self._places)
        if not allowed(program, self._allow) or path is None:
            refused = refusal(program) if not allowed(program, self._allow) else missing(program, self._places)
            results.add(Result(lease.token, TrialState.FAILED, None, refused))
            return
        trial = OwnTrial(lease, session, objective.limits)
        folder = self._checkpoints.open(lease)
        given = Given(objective, lease, folder, self._scratch)
        token = self._mailbox.open(lambda: trial.end is not None)
        given.environment |= {"HPSEARCH_METRICS_URL": self._mailbox.url, "HPSEARCH_METRICS_TOKEN": token}
        fault = self._watch([path, *given.argv[1:]], cwd, given, trial, folder)
        self._mailbox.shut()
        result = trial.result(fault=fault, note=folder.note)
        self._checkpoints.end(lease, folder, max(1, trial.step), result)
        self._hand_over(trial, result, results, session)

    def _watch(self, argv: list[str], cwd: str, given: Given, trial: OwnTrial, folder: Folder) -> str | None:
        """Run a program to its end; why it failed, None if it did not."""
        try:
            program = Program(argv, guard=self._guard, cwd=cwd, env=self._environment | given.environment)
        except OSError as error:
            return f"{argv[0]} cannot be started: {error.strerror or error}; is it executable, with a #! line?"
        errors = Tail(SHOWN_BYTES)
        lines, in_file, posted = Lines(trial), Lines(trial), Lines(trial)
        try:
            while True:
                is_over = program.status is not None
                lines.is_over = in_file.is_over = posted.is_over = is_over
                for name, data in (program.rest() if is_over else program.read()).items():
                    trial.log.add(data)
                    lines.take(data) if name == "out" else errors.add(data)
                in_file.take(given.new_metrics())
                posted.take(self._mailbox.read())
                if is_over:
                    break
                trial.look(program)
                folder.save()
            lines.close()
            in_file.close()
            return self._judged(program.status or 0, trial, errors)
        finally:
            program.close()

    def _judged(self, status: int, trial: OwnTrial, errors: Tail) -> str | None:
        """What an exit status means."""
        if trial.end is not None or status == 0:
            return None
        lease = trial.lease
        if status == DIVERGED:
            trial.end = End(TrialState.DIVERGED, f"it exited with status {DIVERGED}, which says that it diverged")
            return None
        if status == TEMPORARY:
            self._temporary[lease.study, lease.trial] += 1
            if self._temporary[lease.study, lease.trial] < MAX_TEMPORARY:
                trial.end = End(None, "it exited with status 75: tried once more", release=True)
                return None
            return f"it exited with status {TEMPORARY}, a temporary failure, {MAX_TEMPORARY} times on this worker"
        last = errors.text().strip()
        return said(status) + (f":\n{last[-SHOWN_BYTES:]}" if last else "")


class Given:
    """What a program is given of its trial: arguments, variables and files.

    Args:
        objective: with the arguments.
        lease: the trial.
        folder: for its checkpoints.
        scratch: a folder for its files, which take the place of an earlier trial's.
    """

    def __init__(self, objective: CommandObjective, lease: LeasedTrial, folder: Folder, scratch: Path) -> None:
        params = {**objective.params, **lease.params}
        self._metrics = scratch / "metrics.jsonl"
        self._position = 0
        self._metrics.unlink(missing_ok=True)
        (scratch / "params.json").write_text(json.dumps(params))
        facts: dict[str, Any] = {
            "seed": lease.seed,
            "epochs": lease.epochs,
            "trial": lease.trial,
            "checkpoint_dir": str(folder.path),
            "params_file": str(scratch / "params.json"),
            "metrics_file": str(self._metrics),
        }
        assert facts.keys() == set(OF_TRIAL)
        self.argv = objective.command({**facts, **params})
        self.environment = {
            "PYTHONUNBUFFERED": "1",  # so that a Python script's metrics are heard of when it prints them
            "HPSEARCH_STUDY": lease.study,
            "HPSEARCH_STAGE": lease.stage,
            **{f"HPSEARCH_{name.upper()}": str(value) for name, value in facts.items()},
            **{variable(name): as_text(value) for name, value in params.items()},
        }

    def new_metrics(self) -> bytes:
        """What was added to the file of metrics since the last time."""
        try:
            if os.path.getsize(self._metrics) <= self._position:
                return b""
            with self._metrics.open("rb") as file:
                file.seek(self._position)
                data = file.read(LONGEST_LINE)
        except OSError:
            return b""
        self._position += len(data)
        return data


class Lines:
    """Metrics among the lines of an output: JSON objects with ``step``, or with the study's metric.

    Args:
        trial: whose they are.
    """

    def __init__(self, trial: OwnTrial) -> None:
        self._trial = trial
        self._rest = b""
        self.is_over = False
        """Whether the program has ended."""

    def take(self, data: bytes) -> None:
        """Report what is on the lines that these bytes complete. What is no metric is left alone."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-LONGEST_LINE:]
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """The last line may end without a line feed."""
        self._line(self._rest)

    def _line(self, line: bytes) -> None:
        text = line.strip()
        if not (text.startswith(b"{") and text.endswith(b"}")):
            return
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return
        metric = self._trial.lease.metric["name"]
        step = document.pop("step", None)
        if step is None and metric in document:
            step = self._trial.step + 1
        if not isinstance(step, int) or isinstance(step, bool) or step < 1:
            return
        if metric in document and number(document[metric]) is None:
            self._trial.odd(document[metric])
        if metrics := dict(_numbers(document)):
            self._trial.report(step, metrics, is_over=self.is_over)


def _numbers(document: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in document.items():
        if (found := number(value)) is not None and "\0" not in name:
            yield name, found


def number(value: Any) -> float | None:
    """A number of JSON, or one that is not finite and so a text; None for everything else."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def find(program: str, folders: Sequence[str]) -> tuple[str | None, str]:
    """A program's file (None if there is none) and where it runs: in the folder that has it, else in the first.

    A name without a slash is looked for as a shell does, on ``PATH``.
    """
    if "/" not in program:
        return shutil.which(program), folders[0]
    for folder in folders:
        path = os.path.join(folder, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path, folder
    return None, folders[0]


def missing(program: str, folders: Sequence[str]) -> str:
    """Why a program cannot be run."""
    if "/" not in program:
        beside = any(os.path.isfile(os.path.join(folder, program)) for folder in folders)
        hint = f"; a file of that name is here: write ./{program}" if beside else ""
        return f"there is no command {program!r} on the worker's PATH{hint}: install it, or give its path"
    for folder in folders:
        if os.path.isfile(os.path.join(folder, program)):
            return f"{os.path.join(folder, program)} is not executable: chmod +x {program}"
    return (
        f"there is no file {program!r} (looked in {', '.join(folders)}): start the worker in its folder, or give the "
        "folder with --path"
    )
