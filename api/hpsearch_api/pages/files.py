"""Our own scripts, styles and icons, and plotly.js: read once, packed once, under addresses that change with them."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
ASIDE = {".md", ""}
"""Endings of what lies beside the files and is not served."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """What a browser is given. ``digest``: of the content, so that an equal one need not be sent again."""

    content: bytes
    packed: bytes
    media_type: str
    digest: str


@lru_cache(maxsize=1)
def static_files() -> dict[str, Path]:
    """Every file that there is, by its path within the folder: nothing else can be asked for."""
    found = (path for path in STATIC.rglob("*") if path.is_file() and path.suffix not in ASIDE)
    return {path.relative_to(STATIC).as_posix(): path for path in found}


def static_file(path: str) -> StaticFile | None:
    """The file of a path within the folder, or None."""
    found = static_files().get(path)
    return None if found is None else _read(found, found.stat().st_mtime_ns)


def static_url(path: str) -> str:
    """Address of a static file, with a version in it so that browsers may keep it for good."""
    found = static_file(path)
    assert found is not None, f"there is no static file {path}"
    return f"/static/{path}?v={found.digest}"


@lru_cache(maxsize=128)
def _read(path: Path, changed: int) -> StaticFile:  # noqa: ARG001 - a file that was changed is read again
    content = path.read_bytes()
    media_type = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(path)[0]
    packed = gzip.compress(content, compresslevel=6, mtime=0)
    digest = hashlib.sha256(content).hexdigest()[:12]
    return StaticFile(content, packed, media_type or "application/octet-stream", digest)
