"""Templates to responses. Everything a user types is escaped; nothing is loaded from another origin."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hpsearch_api.pages import formats
from hpsearch_api.pages.files import static_url
from hpsearch_api.pages.table import choices_text, range_text

HERE = Path(__file__).parent

HEADERS = {
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
POLICY = (
    "default-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'self'; form-action 'self'; script-src 'self'"
)
# Plotly writes style attributes; its style rules go into a sheet of ours (plotly.css), so no style element is allowed.
POLICY_WITH_FIGURES = f"{POLICY}; style-src-attr 'unsafe-inline'"

FEW_POINTS = 900
"""So many of its points the first figure of a page has at first: they are drawn in a quarter of a second."""

FILTERS = (
    "bar", "change", "count", "duration", "editable", "extent", "fixed", "methods", "moment", "place", "plural",
    "range_text", "rate", "stop_text", "took", "value",
)  # fmt: skip
"""Functions of :mod:`~hpsearch_api.pages.formats` that templates use."""


def render(template: str, *, status: int = 200, figures: bool = False, **values: Any) -> HTMLResponse:
    """A page or a fragment of one; ``figures`` says whether it draws any."""
    text = _environment().get_template(template).render(values)
    policy = POLICY_WITH_FIGURES if figures else POLICY
    return HTMLResponse(text, status_code=status, headers=HEADERS | {"Content-Security-Policy": policy})


def part(template: str, **values: Any) -> HTMLResponse:
    """A fragment that a page puts in place of its own."""
    return render(f"parts/{template}", **values)


def _segment(text: object) -> str:
    return quote(str(text), safe="")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"static": static_url, "few_points": FEW_POINTS, "app_version": version("hpsearch")}
    environment.filters |= {"range_query": range_text, "choices_query": choices_text}
    for name in FILTERS:
        environment.filters[name] = getattr(formats, name)
    environment.filters["segment"] = _segment
    return environment
