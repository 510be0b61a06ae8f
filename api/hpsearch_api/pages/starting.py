"""What a new study may start from: the examples, or another study."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hpsearch.spec import StudySpec
from hpsearch.study import Study

HERE = Path(__file__).parent
FOLDERS = (HERE / "examples", HERE.parents[2] / "examples")
"""Where the examples lie: in the installed package, or in the repository."""


@lru_cache(maxsize=1)
def examples() -> list[dict[str, str]]:
    """Each example's name and text."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    found = [] if folder is None else sorted(folder.glob("*.yaml"))
    return [{"name": path.stem.replace("_", " "), "text": path.read_text()} for path in found]


def clone(study: Study) -> str:
    """A study's document as text, under a name of its own; what has its default is left out."""
    document = study.spec.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump({**document, "name": f"{study.name}-2"}, sort_keys=False, allow_unicode=True, width=100)


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """The JSON schema of a study."""
    return StudySpec.model_json_schema()
