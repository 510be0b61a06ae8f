"""The table of trials: what the address says of filter, order and page, and the addresses of the others."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from pydantic import TypeAdapter

from hpsearch.document import unknown
from hpsearch.errors import InvalidInput
from hpsearch.space import Value
from hpsearch.spec import StudySpec
from hpsearch.store import TrialQuery
from hpsearch.trial import TrialState
from hpsearch.verdicts import NAMES

PAGE_SIZES = (25, 50, 100, 250)
MAX_PARAM_COLUMNS = 16
MAX_RANGES = 20
_CHOICES: TypeAdapter[list[Value]] = TypeAdapter(list[Value])


@dataclass(frozen=True, slots=True)
class Column:
    """A column that can be sorted by. ``falling_first``: whether the first click puts the largest on top."""

    key: str
    title: str
    numeric: bool
    falling_first: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """What the table shows; ``sort`` and ``after`` as in :class:`~hpsearch.store.TrialQuery`."""

    study: str
    columns: tuple[Column, ...]
    sort: str
    stage: str | None = None
    state: str | None = None
    verdict: str | None = None
    limit: int = PAGE_SIZES[0]
    after: str | None = None
    within: tuple[tuple[str, float, float], ...] = ()
    among: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    def query(self) -> TrialQuery:
        """What to ask of the store."""
        states = (TrialState(self.state),) if self.state else ()
        return TrialQuery(
            stage=self.stage,
            states=states,
            verdict=self.verdict,
            within=self.within,
            among=self.among,
            sort=self.sort,
            limit=self.limit,
            after=self.after,
        )

    def address(self, **changes: Any) -> str:
        """The query string of this table with something changed; a change begins at the first page again."""
        table = replace(self, **({"after": None} | changes))
        shown = {name: getattr(table, name) for name in ("stage", "state", "verdict", "sort", "limit", "after")}
        shown["within"] = [range_text(given) for given in table.within]
        shown["among"] = [choices_text(given) for given in table.among]
        return "?" + urlencode({name: value for name, value in shown.items() if value is not None}, doseq=True)

    def without(self, key: str) -> str:
        """The query string of this table without its range or choices of a key."""
        within = tuple(each for each in self.within if each[0] != key)
        return self.address(within=within, among=tuple(each for each in self.among if each[0] != key))

    def order(self, column: Column) -> str:
        """Value of ``aria-sort`` for a column."""
        if self.sort.removeprefix("-") != column.key:
            return "none"
        return "descending" if self.sort.startswith("-") else "ascending"

    def sort_address(self, column: Column) -> str:
        """Where a click on a column's header leads."""
        falling = not self.sort.startswith("-") if self.order(column) != "none" else column.falling_first
        return self.address(sort=f"-{column.key}" if falling else column.key)

    def matching(self, stages: list[dict[str, Any]]) -> int | None:
        """How many trials there are on all pages, from the stages' counts; None where those do not tell."""
        if self.verdict is not None or self.within or self.among:
            return None
        chosen = [stage["counts"] for stage in stages if self.stage in (None, stage["name"])]
        return sum(int(n) for counts in chosen for state, n in counts.items() if self.state in (None, state))


def read_table(
    spec: StudySpec, query: Mapping[str, str], ranges: Sequence[str] = (), choices: Sequence[str] = ()
) -> Table:
    """The table that an address asks for; the best trials first if it does not say.

    Args:
        spec: of the study.
        query: of the address.
        ranges: every ``within`` of it, as :func:`range_text` writes them.
        choices: every ``among`` of it, as :func:`choices_text` writes them.

    Raises:
        InvalidInput: an unknown state, or a page size that is none.
    """
    falling = spec.metric.direction == "maximize"
    columns = (
        Column("number", "Trial", True, falling_first=True),
        Column("value", spec.metric.name, True, falling_first=falling),
        *(Column(f"params.{name}", name, True) for name in list(spec.space)[:MAX_PARAM_COLUMNS]),
        Column("stage", "Stage", False),
        Column("state", "State", False),
        Column("verdicts", "Verdicts", False),
        Column("step", "Step", True, falling_first=True),
        Column("ended_at", "Ended", False, falling_first=True),
    )
    state = query.get("state") or None
    if state is not None and state not in list(TrialState):
        raise InvalidInput(unknown(state, [s.value for s in TrialState], what="state"))
    verdict = query.get("verdict") or None
    if verdict is not None and verdict not in NAMES:
        raise InvalidInput(unknown(verdict, list(NAMES), what="verdict"))
    size = query.get("limit") or str(PAGE_SIZES[0])
    if size not in map(str, PAGE_SIZES):
        raise InvalidInput(f"limit {size!r} is no page size: give one of {', '.join(map(str, PAGE_SIZES))}")
    return Table(
        study=spec.name,
        columns=columns,
        sort=query.get("sort") or ("-value" if falling else "value"),
        stage=query.get("stage") or None,
        state=state,
        verdict=verdict,
        limit=int(size),
        after=query.get("after") or None,
        within=_ranges(ranges, query),
        among=_all_choices(choices),
    )


def range_text(given: tuple[str, float, float]) -> str:
    """A range as an address has it: ``params.lr:1e-05:0.001``."""
    key, low, high = given
    return f"{key}:{low!r}:{high!r}"


def choices_text(given: tuple[str, tuple[Value, ...]]) -> str:
    """Some choices of a parameter as an address has them: ``params.model.init:["he","xavier"]``."""
    key, choices = given
    return f"{key}:{json.dumps(choices, ensure_ascii=False, separators=(',', ':'))}"


def _all_choices(texts: Sequence[str]) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    if len(texts) > MAX_RANGES:
        raise InvalidInput(f"choices of {len(texts)} parameters are too many: give at most {MAX_RANGES}")
    return tuple(_choices(text) for text in texts)


def _choices(text: str) -> tuple[str, tuple[Value, ...]]:
    key, _, told = text.partition(":[")
    try:
        choices = _CHOICES.validate_json(f"[{told}")
    except ValueError:
        raise InvalidInput(f"among {text!r} has no choices: give NAME:[CHOICE,…], such as batch_size:[32,64]") from None
    return key, tuple(choices)


def _ranges(texts: Sequence[str], query: Mapping[str, str]) -> tuple[tuple[str, float, float], ...]:
    found = {}
    if query.get("range_of"):
        low, high = query.get("range_low") or "-1e308", query.get("range_high") or "1e308"
        texts = [*texts, f"{query['range_of']}:{low}:{high}"]
    for text in texts:
        key, low, high = (["", "", "", *text.rsplit(":", 2)])[-3:]
        try:
            ends = (float(low), float(high))
        except ValueError:
            ends = (math.nan, math.nan)
        if not all(map(math.isfinite, ends)):
            raise InvalidInput(f"within {text!r} is no range: give NAME:LOW:HIGH, such as params.lr:1e-5:1e-3")
        found[key] = ends
    if len(found) > MAX_RANGES:
        raise InvalidInput(f"{len(found)} ranges are too many: give at most {MAX_RANGES}")
    return tuple((key, *ends) for key, ends in found.items())
