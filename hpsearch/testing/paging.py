"""Sorting and paging of the memory store: sort everything, find the item that the cursor names, go on behind it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

from hpsearch.document import unknown
from hpsearch.errors import InvalidInput
from hpsearch.store import SORT_KEYS, Page, TrialQuery
from hpsearch.study import Study
from hpsearch.trial import Trial

_Key = tuple[int, Any] | None
"""Rank of its type, and the value; None if the trial has no such key."""


def page_of_studies(studies: Sequence[Study], limit: int, after: str | None) -> Page[Study]:
    """A page of studies, newest first."""
    if limit < 1:
        raise InvalidInput(f"limit {limit} is below 1")
    before = None if after is None else _decode(after, "studies")
    if before is not None and not isinstance(before, int):
        raise InvalidInput(f"the cursor {after!r} is damaged")
    found = [s for s in sorted(studies, key=lambda s: -s.id) if before is None or s.id < before]
    page, rest = found[:limit], found[limit:]
    return Page(page, _encode(["studies", page[-1].id]) if rest else None)


def page_of_trials(study: Study, stages: list[str], trials: Sequence[Trial], query: TrialQuery) -> Page[Trial]:
    """A page of trials, which may move between two pages: the cursor holds the key and number of the last one."""
    if query.limit < 1:
        raise InvalidInput(f"limit {query.limit} is below 1")
    falling, name = query.sort.startswith("-"), query.sort.removeprefix("-")
    key = _key(name, study, stages)
    ranges = [(_key(of, study, stages), low, high) for of, low, high in query.within]
    choices = [(_param_of(of, study), [_param_key(choice) for choice in given]) for of, given in query.among]
    chosen = [t for t in trials if _matches(t, query) and all(_lies(of(t), low, high) for of, low, high in ranges)]
    chosen = [t for t in chosen if all(of(t) in keys for of, keys in choices)]
    chosen = _sorted(chosen, key, falling=falling)
    asked = (query.stage, sorted(query.states), query.verdict, query.within, query.among, query.every, query.sort)
    mark = repr((study.id, *asked))
    if query.after is not None:
        last_key, number = _last(query.after, mark)
        chosen = [t for t in chosen if _is_behind(key(t), t.number, last_key, number, falling=falling)]
    page, rest = chosen[: query.limit], chosen[query.limit :]
    return Page(page, _encode([mark, [key(page[-1]), page[-1].number]]) if rest else None)


def _sorted(trials: list[Trial], key: Callable[[Trial], _Key], *, falling: bool) -> list[Trial]:
    present = [t for t in trials if key(t) is not None]
    ranks = sorted({k[0] for t in present if (k := key(t)) is not None})
    ordered: list[Trial] = []
    for rank in ranks:
        some = [(k[1], t) for t in present if (k := key(t)) is not None and k[0] == rank]
        ordered += [t for _, t in sorted(some, key=lambda pair: pair[0], reverse=falling)]
    return ordered + [t for t in trials if key(t) is None]


def _is_behind(key: _Key, number: int, last: _Key, last_number: int, *, falling: bool) -> bool:
    if key == last:
        return number > last_number
    if key is None or last is None:
        return key is None
    if key[0] != last[0]:
        return key[0] > last[0]
    return bool(key[1] < last[1] if falling else key[1] > last[1])


def _key(name: str, study: Study, stages: list[str]) -> Callable[[Trial], _Key]:
    if name == "stage":
        return lambda trial: (0, stages.index(trial.stage))
    if name in ("started_at", "ended_at"):
        return lambda trial: None if getattr(trial, name) is None else (0, getattr(trial, name).timestamp())
    if name in SORT_KEYS:
        return lambda trial: None if getattr(trial, name) is None else (0, getattr(trial, name))
    known = [*SORT_KEYS, *(f"params.{param}" for param in study.spec.space)]
    if name not in known:
        raise InvalidInput(unknown(name, known, what="sort key"))
    return lambda trial: _param_key(trial.params.get(name.removeprefix("params.")))


def _param_of(name: str, study: Study) -> Callable[[Trial], _Key]:
    if name in SORT_KEYS:
        raise InvalidInput(f"trials have no choices of {name}: give params.NAME")
    return _key(name, study, [])


def _param_key(value: Any) -> _Key:
    """Numbers before everything else, which goes by its text."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, value)
    return (1, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _encode(parts: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def _decode(text: str, mark: str) -> Any:
    try:
        parts = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError):
        parts = None
    if not isinstance(parts, list) or len(parts) != 2 or parts[0] != mark:
        raise InvalidInput(f"the cursor {text!r} is not of this query")
    return parts[1]


def _last(text: str, mark: str) -> tuple[_Key, int]:
    match _decode(text, mark):
        case [None, int(number)]:
            return None, number
        case [[int(rank), int() | float() | str() as value], int(number)]:
            return (rank, value), number
        case _:
            raise InvalidInput(f"the cursor {text!r} is damaged")


def _lies(key: _Key, low: float, high: float) -> bool:
    return key is not None and key[0] == 0 and bool(low <= key[1] <= high)


def _matches(trial: Trial, query: TrialQuery) -> bool:
    return (
        query.stage in (None, trial.stage)
        and trial.number % query.every == 0
        and (not query.states or trial.state in query.states)
        and (query.verdict is None or query.verdict in [v["name"] for v in trial.verdicts])
    )
