"""Which code of users may run, and what the command line says about it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from hpsearch.errors import InvalidInput

if TYPE_CHECKING:
    from hpsearch.objective import Objective
    from hpsearch.spec import StudySpec


def allowed(code: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern, as a shell's (``my_nets:*``), matches an entry point or a program."""
    return any(fnmatchcase(code, pattern) for pattern in patterns)


def code_of(objective: Objective) -> str | None:
    """What is matched against the patterns: the entry point, or the program; None where the study brings no code."""
    if objective.kind == "command":
        return objective.argv[0]
    return objective.entrypoint if objective.kind in ("task", "python") else None


def check_allowed(spec: StudySpec, patterns: Sequence[str]) -> None:
    """Raise InvalidInput if a study runs code of its user's that no pattern allows."""
    code = code_of(spec.objective)
    if code is not None and not allowed(code, patterns):
        raise InvalidInput(
            f"the study {spec.name} runs the code of {code} on this machine: say so with "
            f"--allow {shlex.quote(code)}, or a pattern"
        )


def refusal(code: str) -> str:
    """Why a worker does not run a trial."""
    return f"the code of {code} may not run here: start the worker with --allow '{code}', or a pattern"


def worker_options(patterns: Sequence[str] | None, folder: Path | None = None) -> list[str]:
    """What workers are started with; ``folder``: where the user's code is looked for first."""
    options = [part for pattern in patterns or [] for part in ("--allow", pattern)]
    return [*options, "--path", str(folder)] if options and folder is not None else options


def code_options(spec: StudySpec, folder: Path) -> str:
    """What another command needs to run the same code, after a space; nothing where the study brings none."""
    code = code_of(spec.objective)
    if code is None:
        return ""
    path = f" --path {shlex.quote(str(folder))}" if folder.resolve() != Path.cwd() else ""
    return f" --allow {shlex.quote(code)}{path}"
