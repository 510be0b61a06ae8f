"""Logs of servers and workers: one line each, readable or JSON, with what the line is about (request, study, trial)."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["text", "json"]

_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039 - never changed, only replaced


def configure(level: int, form: Format = "text") -> None:
    """Send logs to standard error. Later calls have no effect."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler])


class about:  # noqa: N801 - as contextlib's own
    """``with about(study="s"):`` adds fields to every line that is logged inside, in this thread or task."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        self._token = _about.set({**_about.get(), **self._fields})

    def __exit__(self, *raised: object) -> None:
        _about.reset(self._token)


def told(**fields: Any) -> dict[str, Any]:
    """``log.info("…", extra=told(study="s"))``: fields of one line."""
    return {"fields": fields}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {**_about.get(), **getattr(record, "fields", {})}


class JsonLines(logging.Formatter):
    """One JSON object a line: ``at``, ``level``, ``logger``, ``message``, the fields, ``error`` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII: no character moves a terminal's cursor or turns a line around


class TextLines(logging.Formatter):
    """``2026-01-01T00:00:00.000+00:00 INFO message study=s trial=3``; what a client sent cannot begin a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        line = f"{at} {record.levelname} {_shown(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _shown(text: str) -> str:
    """The text with what cannot be printed (line ends, escapes, marks of direction) written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _plain(value: Any) -> str:
    text = str(value)
    return text if text and text.isprintable() and " " not in text and '"' not in text else json.dumps(text)
