"""Templates to responses. Everything a user types is escaped; nothing is loaded from another origin."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import plotly
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hpsearch_api.pages import formats
from hpsearch_api.pages.table import range_text

HERE = Path(__file__).parent
STATIC = HERE / "static"

HEADERS = {
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
POLICY = (
    "default-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'self'; form-action 'self'; script-src 'self'"
)
# Plotly compiles its WebGL drawing with the Function constructor: without this, many points stay invisible. It also
# writes style attributes; its style rules go into a sheet of ours (plotly.css), so no style element is allowed.
POLICY_WITH_FIGURES = f"{POLICY} 'unsafe-eval'; style-src-attr 'unsafe-inline'"

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


@lru_cache(maxsize=256)
def static_url(path: str) -> str:
    """Address of a static file, with a version in it so that browsers may keep it for good."""
    if path == "plotly.min.js":
        key = version("plotly")
    else:
        key = hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:12]
    return f"/static/{path}?v={key}"


@lru_cache(maxsize=1)
def plotly_sheets() -> list[str]:
    """Ids of the style elements that Plotly adds for maps, unless the page has something of that id already.

    The policy allows no style element, and no figure here is a geographic map.
    """
    script = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text()
    return re.findall(r'getElementById\("([0-9a-f]{64})"\)', script)


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
    environment.globals |= {"static": static_url, "plotly_sheets": plotly_sheets, "app_version": version("hpsearch")}
    environment.filters["range_query"] = range_text
    for name in FILTERS:
        environment.filters[name] = getattr(formats, name)
    environment.filters["segment"] = _segment
    return environment
