"""The URL of a store: which database it names, and how it reads without its password."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from hpsearch.document import unknown
from hpsearch.errors import InvalidInput, StoreUnreachable
from hpsearch_storage.codec import check_text

SCHEMES = ("sqlite", "postgresql")
_ALIASES = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "postgresql+psycopg": "postgresql",
}
_SECRET = re.compile(r"pass|secret|token", re.IGNORECASE)


def parse_url(text: str) -> URL:
    """The SQLAlchemy URL of a store.

    Raises:
        InvalidInput: not a URL, an unknown scheme, or a SQLite URL without a file.
        StoreUnreachable: the driver of the scheme is not installed.
    """
    check_text(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise InvalidInput(
            f"the store {_mask(text)!r} is not a URL: write sqlite:///file.db or postgresql://user:password@host/database"
        ) from None
    if url.drivername not in _ALIASES:
        raise InvalidInput(unknown(url.drivername, list(SCHEMES), what="scheme of a store"))
    if _ALIASES[url.drivername] == "postgresql":
        if importlib.util.find_spec("psycopg") is None:
            raise StoreUnreachable(shown(url), "its driver psycopg is missing; pip install 'hpsearch[server]'")
        return url.set(drivername="postgresql+psycopg")
    if url.host:
        raise InvalidInput(f"{text!r} names a host: a SQLite URL has three slashes, sqlite:///{url.host}")
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise InvalidInput(f"{text!r} names no file: write sqlite:///file.db")
    return url.set(drivername="sqlite+pysqlite")


def file_of(url: URL) -> Path | None:
    """The file of a SQLite URL, None for PostgreSQL."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def fault_of_folder(path: Path) -> str | None:
    """What keeps a file from lying in its folder, if anything is seen."""
    folder = path.absolute().parent
    try:
        path.absolute().exists()
        return None if folder.is_dir() else f"the folder {folder} does not exist; create it"
    except OSError as error:  # pathlib does not hide that a folder may not be entered
        return f"the folder {folder} cannot be entered; check the rights on it ({error.strerror})"


def shown(url: URL) -> str:
    """The URL as it may be printed: no driver, no password."""
    query = {k: "***" if _SECRET.search(k) else v for k, v in url.query.items()}
    return url.set(drivername=url.get_backend_name(), query=query).render_as_string(hide_password=True)


def _mask(text: str) -> str:
    return re.sub(r"://.*@", "://***@", text)
