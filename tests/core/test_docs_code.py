"""Every block of code in the documents is checked, by its language; e2e/test_docs_run.py runs what needs a server."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from hpsearch.cli import app
from hpsearch.spec import parse_study

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"ask", "docker", "done", "export", "for", "lease=$(ask", "pg_dump", "pg_restore", "python", "token=$(echo"}
"""First words of lines of shell that are not of hpsearch, pip or make."""
SMALL: dict[str, Any] = {
    "name": "small",
    "objective": {"kind": "train", "data": {"source": "digits"}},
    "metric": {"name": "val_accuracy", "direction": "maximize"},
    "space": {"lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True}},
    "stages": [{"name": "only", "trials": 4, "epochs": 2}],
}


class Block(NamedTuple):
    """A fenced block: where it stands, its language, its text."""

    where: str
    language: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.name}:{line}", match[1], match[2]))
    return found


BLOCKS = blocks()


def of(language: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language == language]
    assert chosen, language
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.where)


def test_every_block_says_its_language() -> None:
    plain = {block.where.partition(":")[0] for block in BLOCKS if block.language in ("", "text")}
    known = {"architecture.md", "operations.md", "scaling.md", "tutorial.md"}
    assert plain <= known, "a tree of files, output, and calls of Docker need no check; all else says its language"
    assert {block.language for block in BLOCKS} <= {"", "text", "sh", "python", "yaml", "json"}
    assert len(BLOCKS) > 40


@of("yaml")
def test_yaml_is_a_study_or_fits_into_one(block: Block) -> None:
    document = yaml.safe_load(block.text)
    if "services" in document:  # of Docker Compose
        return
    if "objective" in document and "data" not in document["objective"]:
        names = {"metric": {"name": "val_loss", "direction": "minimize"}}
        document = {**SMALL, **names, "stages": [{"name": "only", "trials": 4}], **document}
    parse_study({**SMALL, **document})


@of("python")
def test_python_parses_and_what_it_imports_of_ours_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpsearch"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name), name.name


def commands(text: str) -> list[list[str]]:
    """The lines of a block of shell as words, without comments, redirections and what runs inside of strings."""
    joined = re.sub(r"\\\n", " ", text)
    found = []
    for line in joined.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a string over several lines: the body of a request
            continue
        if ">" in words:
            words = words[: words.index(">")]
        if words:
            found.append([word for word in words if word != "&"])
    return found


@of("sh")
def test_shell_calls_what_there_is(block: Block) -> None:
    if "curl " in block.text:
        return  # run as it stands by test_own_code.py
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *words in commands(block.text):
        if program == "hpsearch":
            check_hpsearch(words)
        elif program == "pip":
            named = re.search(r"\[(.*)\]", words[-1])
            assert named is None or set(named[1].split(",")) <= set(extras), words
        elif program == "make":
            assert words[0] in targets, words
        else:
            assert program in OTHERS, program


def check_hpsearch(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    if words[0].startswith("--"):
        assert words[0] in {option for parameter in command.params for option in parameter.opts}, words
        return
    while words and hasattr(command, "commands"):
        command = command.commands[words[0]]
        words = words[1:]
    command.make_context("hpsearch", words)  # raises where an option is not there, or an argument is missing


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pictures_of_the_tutorial_are_small() -> None:
    pictures = re.findall(r"\((images/tutorial-\S+)\)", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    assert len(pictures) == 7
    for picture in pictures:
        assert 0 < (ROOT / "docs" / picture).stat().st_size < 100_000
