"""Every command of the command line: its examples, and JSON for programs."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from hpsearch.cli import app
from hpsearch.cli.examples import EXAMPLES

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
LEAVES = {
    **{name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")},
    **{
        f"{group} {name}": command
        for group, outer in COMMANDS.items()
        for name, command in getattr(outer, "commands", {}).items()
    },
}
WITHOUT_JSON = {"serve", "worker", "export", "db restore", "token revoke"}
"""Servers, what gives a file in a format of its choice, and what has nothing to tell."""


def test_every_command_has_an_example() -> None:
    assert set(EXAMPLES) == set(LEAVES)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_is_one_of_its_command_and_parses(line: str) -> None:
    program, *words = shlex.split(line)
    group = f"{words[0]} {words[1]}" if words[0] in ("db", "token") else words[0]
    assert program == "hpsearch"
    assert line in EXAMPLES[group]
    LEAVES[group].make_context(group, words[len(group.split()) :])  # raises where an option is not there


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_command_that_tells_something_tells_it_in_json(name: str) -> None:
    options = {option for parameter in LEAVES[name].params for option in parameter.opts}
    assert ("--json" in options) == (name not in WITHOUT_JSON)


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_every_option_and_argument_is_explained(name: str) -> None:
    for parameter in LEAVES[name].params:
        assert parameter.help, (name, parameter.name)
