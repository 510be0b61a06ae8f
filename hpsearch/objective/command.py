"""Any program as an objective: ``kind: command``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from hpsearch.document import Document, StorableText
from hpsearch.objective.own import FixedParams, Limits
from hpsearch.space import Value

OF_TRIAL = ("seed", "epochs", "trial", "checkpoint_dir", "params_file", "metrics_file")
"""Placeholders beside the params, which come first where names are equal."""

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class CommandObjective(Document):
    """Run a program, never a shell, for each trial. Any parameter and any metric."""

    kind: Literal["command"]
    argv: Annotated[list[Annotated[StorableText, Field(max_length=10_000)]], Field(min_length=1, max_length=1000)]
    """The program and its arguments; ``{lr}`` stands for a param, ``{{`` and ``}}`` for braces."""
    params: FixedParams = {}
    limits: Limits = Limits()

    @field_validator("argv")
    @classmethod
    def _check_program(cls, argv: list[str]) -> list[str]:
        if not argv[0] or placeholders(argv[:1]):
            raise PydanticCustomError(
                "argv", "the program {program} must be named without placeholders", {"program": repr(argv[0])}
            )
        return argv

    def command(self, values: Mapping[str, Value]) -> list[str]:
        """``argv`` with its placeholders filled. Raises KeyError for one without a value."""
        return [filled(argument, values) for argument in self.argv]


def placeholders(argv: Iterable[str]) -> list[str]:
    """The names in braces, in order."""
    return [m[1] for argument in argv for m in _PLACEHOLDER.finditer(argument) if m[1] is not None]


def filled(argument: str, values: Mapping[str, Value]) -> str:
    """An argument with its placeholders filled. Raises KeyError for one without a value."""

    def fill(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else as_text(values[match[1]])

    return _PLACEHOLDER.sub(fill, argument)


def as_text(value: Value) -> str:
    """A value as programs read it: a text as it is, everything else as JSON (``0.1``, ``true``, ``[50, 50]``)."""
    return value if isinstance(value, str) else json.dumps(value)


def variable(name: str) -> str:
    """The environment variable of a param: ``HPSEARCH_PARAM_`` and its name in capitals, ``_`` for what is no letter
    or digit of ASCII.
    """
    return "HPSEARCH_PARAM_" + re.sub(r"[^A-Z0-9]", "_", name.upper())
