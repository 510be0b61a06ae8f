"""Which code of users may run, and what the command line says about it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from hpsearch.errors import InvalidInput

if TYPE_CHECKING:
    from hpsearch.spec import StudySpec


def allowed(entrypoint: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern, as a shell's (``my_nets:*``), matches an entry point."""
    return any(fnmatchcase(entrypoint, pattern) for pattern in patterns)


def check_allowed(spec: StudySpec, patterns: Sequence[str]) -> None:
    """Raise InvalidInput if a study runs code of its user's that no pattern allows."""
    entrypoint = getattr(spec.objective, "entrypoint", None)
    if entrypoint is not None and not allowed(entrypoint, patterns):
        raise InvalidInput(
            f"the study {spec.name} runs the code of {entrypoint} on this machine: say so with "
            f"--allow {shlex.quote(entrypoint)}, or a pattern"
        )


def worker_options(patterns: Sequence[str] | None, folder: Path | None = None) -> list[str]:
    """What workers are started with; ``folder``: where modules of tasks are looked for first."""
    options = [part for pattern in patterns or [] for part in ("--allow", pattern)]
    return [*options, "--path", str(folder)] if options and folder is not None else options


def code_options(spec: StudySpec, folder: Path) -> str:
    """What another command needs to run the same code, after a space; nothing where the study brings none."""
    entrypoint = getattr(spec.objective, "entrypoint", None)
    if entrypoint is None:
        return ""
    path = f" --path {shlex.quote(str(folder))}" if folder.resolve() != Path.cwd() else ""
    return f" --allow {shlex.quote(entrypoint)}{path}"
