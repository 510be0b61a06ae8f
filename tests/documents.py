"""The documents' blocks of code, page by page and section by section, as their readers meet them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "SECURITY.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        where: its page and the line of its opening fence.
        section: the nearest heading of the second level above it; empty before the first.
        language: the first word behind the opening fence.
        title: name of the file that a reader saves it as; empty where it is run, or read, as it stands.
    """

    page: str
    where: str
    section: str
    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order. Raises ValueError for a fence that is not closed."""
    found: list[Block] = []
    section, opened, first, at, lines = "", "", "", 0, list[str]()
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if opened:
            if line.strip() == opened:
                language, title = _info(first)
                found.append(Block(page, f"{page}:{at}", section, language, title, dedent("\n".join([*lines, ""]))))
                opened = ""
            else:
                lines.append(line)
        elif fence := _FENCE.match(line):
            opened, at, lines, first = fence[2], number, [], line[fence.end() :]
        elif line.startswith("## "):
            section = line[3:]
    if opened:
        raise ValueError(f"{page}:{at}: the block is not closed")
    return found


def _info(text: str) -> tuple[str, str]:
    language, _, rest = text.strip().partition(" ")
    title = re.fullmatch(r'title="([^"]+)"', rest.strip())
    if rest and title is None:
        raise ValueError(f'{text!r}: after the language there may be title="FILE", nothing else')
    return language, title[1] if title else ""


def titled(page: str, title: str) -> str:
    """The text of the only block of a page that is saved as a file of that name."""
    (text,) = [block.text for block in blocks(page) if block.title == title]
    return text


EXCUSED = {
    ("README.md", "make demo"): "installs the package and runs examples/digits.yaml, which runs below",
    ("README.md", "make test"): "these tests themselves",
    ("", "pip install "): "asks a package index",
    ("docs/commands.md", "hpsearch worker --server http://head:8765 --on"): (
        "needs a Ray cluster with GPUs and a bucket; e2e/test_ray.py runs workers on a cluster"
    ),
    ("docs/operations.md", "docker compose"): (
        "needs Docker; e2e/test_deploy.py runs what the containers run as plain processes"
    ),
}
"""Page (empty for any) and beginning of a command that no test runs → why.

What there is to check of them core/test_docs_code.py checks.
"""
RUN_ELSEWHERE = {
    ("docs/your_code.md", "with_lightning.py"): "core/test_training_libraries.py",
    ("docs/your_code.md", "with_transformers.py"): "core/test_training_libraries.py",
    ("docs/your_code.md", "post.sh"): "e2e/test_docs_run.py",
}
"""Files that no command of their page runs, but a test."""


def excused(page: str, command: str) -> str | None:
    """Why a line of shell is not run; None where it is."""
    return next(
        (why for (where, start), why in EXCUSED.items() if where in ("", page) and command.startswith(start)), None
    )
