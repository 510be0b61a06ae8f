"""What the documents' blocks of code are: e2e/test_docs_run.py runs them, and this checks what it leaves out."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from documents import EXCUSED, PAGES, ROOT, RUN_ELSEWHERE, Block, blocks, excused
from hpsearch.cli import app

SMALL: dict[str, Any] = {
    "name": "small",
    "objective": {"kind": "train", "data": {"source": "digits"}},
    "metric": {"name": "val_accuracy", "direction": "maximize"},
    "space": {"lr": {"type": "float", "low": 1e-3, "high": 1.0, "log": True}},
    "stages": [{"name": "only", "trials": 4, "epochs": 2}],
}
"""What a part of a study is put into."""
BLOCKS = [block for page in PAGES for block in blocks(page)]


def test_every_block_says_what_it_is() -> None:
    assert len(BLOCKS) > 40
    for block in BLOCKS:
        assert block.language in {"sh", "python", "yaml", "text"}, f"{block.where}: nobody runs {block.language!r}"


def test_every_file_that_readers_save_is_used() -> None:
    for block in BLOCKS:
        if block.title and (block.page, block.title) not in RUN_ELSEWHERE:
            stem = Path(block.title).stem
            others = [other.text for other in BLOCKS if other.page == block.page and other is not block]
            assert any(block.title in text or f"{stem}:" in text for text in others), block.where
    for page, title in RUN_ELSEWHERE:
        assert title in (ROOT / "tests" / RUN_ELSEWHERE[page, title]).read_text()


def test_text_is_what_a_command_prints_or_the_tree_of_the_code() -> None:
    for before, block in pairwise(BLOCKS):
        if block.language == "text" and block.page != "docs/architecture.md":
            assert (before.page, before.language) == (block.page, "sh"), block.where
    (tree,) = blocks("docs/architecture.md")
    above = Path()
    for line in tree.text.splitlines():
        name = line.split()[0]
        path = ROOT / (above / name if line.startswith(" ") else name)
        above = above if line.startswith(" ") else Path(name)
        assert path.is_dir(), line


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.where)
def test_yaml_is_a_study_or_fits_into_one(block: Block) -> None:
    from hpsearch_api.validation import validate

    document = yaml.safe_load(block.text)
    answer = validate(yaml.safe_dump(document if "name" in document else {**SMALL, **document}))
    assert answer.valid, answer.errors


LEFT_OUT = [
    (block.page, line)
    for block in BLOCKS
    if block.language == "sh" and not block.title
    for line in block.text.replace("\\\n", " ").splitlines()
    if excused(block.page, line)
]


def test_what_is_not_run_is_there() -> None:
    for page, start in EXCUSED:
        assert any(where == page or not page for where, line in LEFT_OUT if line.startswith(start)), start


@pytest.mark.parametrize(("page", "line"), LEFT_OUT)
def test_what_is_not_run_names_what_there_is(page: str, line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    match program:
        case "hpsearch":
            check_hpsearch(words)
        case "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            named = re.fullmatch(r"hpsearch\[(.*)\]", words[-1])
            assert named is not None
            assert set(named[1].split(",")) <= set(extras)
        case "make":
            subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)
        case "docker":
            document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
            assert words[0] == "compose"
            for option, value in pairwise(words):
                if option == "--scale":
                    assert value.partition("=")[0] in document["services"]
                elif option == "--profile":
                    assert any(value in service.get("profiles", ()) for service in document["services"].values())
        case _:
            raise AssertionError(f"{page}: nothing is known of {program}")


def check_hpsearch(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command = command.commands[words[0]]
        words = words[1:]
    command.make_context("hpsearch", words)  # raises where an option is not there, or an argument is missing


def test_commands_within_sentences_have_the_options_that_they_name() -> None:
    spans = [(page, code) for page in PAGES for code in re.findall(r"`hpsearch ([^`\n]+)`", (ROOT / page).read_text())]
    assert len(spans) > 50
    for page, code in spans:
        command: Any = typer.main.get_command(app)
        for word in code.split():
            command = getattr(command, "commands", {}).get(word, command)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in code.split() if word.startswith("--")} <= known, f"{page}: {code}"


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)(?:#[^)]*)?\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_pictures_of_the_tutorial_are_small() -> None:
    pictures = re.findall(r"\((images/tutorial-\S+)\)", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    assert len(pictures) == 7
    for picture in pictures:
        assert 0 < (ROOT / "docs" / picture).stat().st_size < 100_000
