"""What runners of the user's own code share: where it lies, its environment, what a check says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def places(folders: Sequence[Path]) -> list[str]:
    """Where the user's files are looked for: the folders given, then the working directory."""
    return list(dict.fromkeys([*(str(Path(folder).resolve()) for folder in folders), os.getcwd()]))


def environment(device: str) -> dict[str, str]:
    """This process's, without what is the worker's own: its token, its store. A GPU of several is the only one seen."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HPSEARCH_")}
    kind, _, index = device.partition(":")
    if kind == "cuda" and index.isdecimal():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else []
        kept["CUDA_VISIBLE_DEVICES"] = names[int(index)] if int(index) < len(names) else index
    return kept


def check(name: str, fault: str | None, message: str) -> dict[str, Any]:
    """A check of a study, failed if there is a fault."""
    status = "pass" if fault is None else "fail"
    return {"name": name, "status": status, "message": (fault or message)[:2000], "numbers": {}}
