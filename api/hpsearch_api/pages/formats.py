"""How values are written in pages: short, aligned, the same everywhere."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from hpsearch_api.figures.style import compact

STATE_ORDER = ("completed", "pruned", "diverged", "failed", "cancelled", "running", "queued")
"""The order in which states stand in a progress bar: what has ended first."""


def count(n: int) -> str:
    """A whole number with thousands separated."""
    return f"{n:,}"


def plural(n: int, one: str, many: str | None = None) -> str:
    """``1 trial``, ``1,200 trials``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def value(number: object) -> str:
    """A parameter or metric in few characters; a dash for nothing."""
    return "–" if number is None else compact(number)


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for i, (name, size) in enumerate(units):
        if whole >= size:
            amount, rest = divmod(whole, size)
            smaller = rest // units[i + 1][1] if i + 1 < len(units) else 0
            return f"{amount} {name}" + (f" {smaller} {units[i + 1][0]}" if smaller else "")
    return "0 s"


def moment(text: str | None) -> str:
    """An RFC 3339 time as ``2026-03-01 12:00:05 UTC``; scripts put ``5 min ago`` in its place."""
    return "–" if text is None else f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"


def range_text(param: dict[str, Any]) -> str:
    """A distribution's range: ``1e-6 to 1e-3``, or its choices."""
    if param["type"] == "categorical":
        return ", ".join(compact(choice) for choice in param["choices"])
    return f"{compact(param['low'])} to {compact(param['high'])}"


def place(param: dict[str, Any], x: object) -> float | None:
    """Where a value lies in a range on the range's own scale, in percent, held within 0 and 100.

    None for a categorical parameter or for what is not a number.
    """
    if param["type"] == "categorical" or isinstance(x, bool) or not isinstance(x, int | float):
        return None
    low, high = float(param["low"]), float(param["high"])
    if param.get("log"):
        if x <= 0:
            return 0.0
        share = (math.log(x) - math.log(low)) / (math.log(high) - math.log(low))
    else:
        share = (x - low) / (high - low)
    return round(100 * min(max(share, 0.0), 1.0), 2)


def extent(param: dict[str, Any], outer: dict[str, Any]) -> tuple[float, float] | None:
    """Start and width of a range within another one, in percent of the outer range's own scale."""
    start, end = (place(outer, param.get(side)) for side in ("low", "high"))
    return None if start is None or end is None else (start, max(round(end - start, 2), 0.5))


def bar(counts: dict[str, int], planned: int) -> list[tuple[str, float, float]]:
    """The pieces of a progress bar as (state, start, width) in percent; what is queued or not created stays empty."""
    total = max(planned, sum(counts.values()), 1)
    pieces, start = [], 0.0
    for state in STATE_ORDER:
        width = 100 * counts.get(state, 0) / total
        if width and state != "queued":
            pieces.append((state, round(start, 3), round(width, 3)))
            start += width
    return pieces


def fixed(number: float | None) -> str:
    """A share or correlation with two digits: ``0.93``."""
    return "–" if number is None else f"{number:.2f}".replace("-", "−")


def editable(number: float) -> str:
    """A range's end as a user would type it: short where that is exact, else every digit."""
    text = compact(number)
    return text if float(text) == number else repr(number)


def change(ends: dict[str, list[Any]]) -> str:
    """What a stage changes of a range: ``high 1e-3 → 3.16e-2``."""
    return ", ".join(
        f"{end} {' → '.join(compact(value) for value in pair)}" if end in ("low", "high") else f"{end} changed"
        for end, pair in ends.items()
    )


def widest(own: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Each parameter of a space with the widest range that any stage gives it, for bars that share one scale."""
    found = {}
    for name, param in own.items():
        spaces = [param, *(stage["space"][name] for stage in stages if name in stage["space"])]
        numeric = [p for p in spaces if p["type"] != "categorical"]
        found[name] = param
        if numeric and param["type"] != "categorical":
            found[name] = {**param, "low": min(p["low"] for p in numeric), "high": max(p["high"] for p in numeric)}
    return found


def methods(stage: dict[str, Any]) -> str:
    """How a stage finds its trials, and which it stops early: ``tpe, asha``."""
    named = [
        value if isinstance(value, str) else value["name"] for value in (stage["sampler"], stage["early_stopping"])
    ]
    found = "finalists" if stage.get("top") else named[0]
    return found if named[1] == "none" else f"{found}, {named[1]}"


def stop_text(stop: dict[str, Any], metric: dict[str, Any]) -> str:
    """When a study ends itself."""
    rules = []
    if stop["target"] is not None:
        sign = "≥" if metric["direction"] == "maximize" else "≤"
        rules.append(f"{metric['name']} {sign} {compact(stop['target'])}")
    if stop["seconds"] is not None:
        rules.append(f"{duration(stop['seconds'])} have passed")
    if stop["epochs"] is not None:
        rules.append(f"{plural(stop['epochs'], 'epoch')} are trained")
    if stop["no_improvement"] is not None:
        rules.append(f"{plural(stop['no_improvement'], 'trial')} bring nothing better")
    return "once " + ", or ".join(rules) if rules else "with its last stage"


def took(study: dict[str, Any]) -> float | None:
    """Seconds from a study's submission to its end."""
    if study["ended_at"] is None:
        return None
    ended, created = (datetime.fromisoformat(study[key]) for key in ("ended_at", "created_at"))
    return (ended - created).total_seconds()


def rate(per_minute: float | None) -> str:
    """So many a minute, in three digits at most; a dash for none."""
    if per_minute is None:
        return "–"
    return f"{per_minute:.2g}" if per_minute < 10 else f"{per_minute:,.0f}"
