"""Lines of log: what they are about, and that nobody can forge one."""

from __future__ import annotations

import json
import logging
import sys
import threading

import pytest

from hpsearch.logs import JsonLines, TextLines, about, told


def record(text: str = "done", *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("hpsearch.x", logging.INFO, __file__, 1, text, arguments, None)
    made.created = 1767225600.25  # 2026-01-01T00:00:00.25Z
    made.__dict__.update(told(**fields))
    return made


def test_a_line_of_json() -> None:
    line = JsonLines().format(record("trained %d", 3, study="s"))
    assert json.loads(line) == {
        "at": "2026-01-01T00:00:00.250+00:00",
        "level": "info",
        "logger": "hpsearch.x",
        "message": "trained 3",
        "study": "s",
    }


def test_a_readable_line() -> None:
    line = TextLines().format(record(study="s", note="two words", empty=""))
    assert line == '2026-01-01T00:00:00.250+00:00 INFO done study=s note="two words" empty=""'


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\u202eb", "a\u2028b", 'a" level="error'])
def test_what_a_client_sends_forges_no_line(text: str) -> None:
    readable = TextLines().format(record("said %s", text, who=text))
    assert readable.isprintable()
    assert " level=" not in readable.partition("who=")[2].replace('\\" level', "")
    line = JsonLines().format(record("said %s", text, message=text, who=text))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["who"] == text
    assert json.loads(line)["message"] == f"said {text}", "a field replaces nothing"


def test_what_lines_are_about_is_kept_by_task_and_thread() -> None:
    seen: list[str] = []
    with about(request="1"):
        with about(study="s"):
            seen.append(TextLines().format(record()))
            thread = threading.Thread(target=lambda: seen.append(TextLines().format(record())))
            thread.start()
            thread.join()
        seen.append(TextLines().format(record()))
    assert [line.partition("INFO done")[2] for line in seen] == [" request=1 study=s", "", " request=1"]


def test_an_error_is_told_with_its_traceback() -> None:
    made = record()
    try:
        raise ValueError("broken")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: broken" in json.loads(JsonLines().format(made))["error"]
    assert "ValueError: broken" in TextLines().format(made)
