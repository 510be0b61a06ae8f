"""What tests of pages share."""

from __future__ import annotations

import time
from typing import Any

from playwright.sync_api import Page


def until(page: Page, expression: str, arg: Any = None, *, timeout_seconds: float = 15.0) -> None:
    """Wait until an expression (or a function of ``arg``) is true in the page.

    ``page.wait_for_function`` evaluates within the page, which the pages' policy forbids.
    """
    end = time.monotonic() + timeout_seconds
    while not page.evaluate(expression, arg):
        assert time.monotonic() < end, f"after {timeout_seconds} s still not so: {expression}"
        page.wait_for_timeout(50)
