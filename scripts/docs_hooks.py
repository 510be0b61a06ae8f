"""What the documentation site takes from outside of docs/, called by mkdocs: see hooks in mkdocs.yml.

Pages link to other files of the repository by ``../``, as they are read there; on the site these files lie beside the
pages. Docstrings are written with reStructuredText's roles; on the site the names alone stand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("SECURITY.md", "benchmarks/RESULTS.md")
"""In the navigation, whether or not a page links to them."""
OUT = re.compile(r"\]\(\.\./([^)#]+)(#[^)]*)?\)")
IN = re.compile(r"\]\((?:\.\./)?docs/([^)]+)\)")
BESIDE = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")
ROLE = re.compile(r":(?:class|data|func|meth|mod|attr):(?=<code>|<a )")


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to, and what those files link to."""
    texts = [path.read_text(encoding="utf-8") for path in Path(config["docs_dir"]).glob("*.md")]
    waiting = {match[1] for text in texts for match in OUT.finditer(text)}.union(PAGES)
    added: set[str] = set()
    while waiting:
        path = waiting.pop()
        if (ROOT / path).is_file():  # what is not there stays a link that leads nowhere, and fails the build
            added.add(path)
            waiting |= _linked(path) - added
    for path in sorted(added):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def _linked(path: str) -> set[str]:
    """Files of the repository, outside of docs/, that a page outside of it links to."""
    if not path.endswith(".md"):
        return set()
    text = (ROOT / path).read_text(encoding="utf-8")
    targets = [((ROOT / path).parent / match[1]).resolve() for match in BESIDE.finditer(text)]
    found = {str(target.relative_to(ROOT)) for target in targets if target.is_relative_to(ROOT)}
    return {each for each in found if not each.startswith("docs/")}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links out of docs/, and those of outer pages into it, to where the files lie on the site."""
    return IN.sub(r"](\1)", OUT.sub(lambda match: f"]({match[1]}{match[2] or ''})", markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles away that docstrings have."""
    return ROLE.sub("", html)
