"""Values as the database keeps them: JSON text, microseconds since 1970, and what no database can hold."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, from_json, to_json

from hpsearch.document import is_storable
from hpsearch.errors import InvalidInput
from hpsearch.space import Space
from hpsearch.spec import StageSpec, StudySpec

T = TypeVar("T")

MAX_WHOLE = 2**63 - 1
"""The largest integer of both databases."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_LONG = re.compile("[0-9]{19}")
"""What may be an integer of more than 64 bits."""
_SPACE: TypeAdapter[Space] = TypeAdapter(Space)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970 of an aware time, exactly."""
    if moment.tzinfo is None:
        raise InvalidInput(f"the time {moment.isoformat()} has no time zone: give an aware one")
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The aware UTC time of so many microseconds since 1970."""
    return _EPOCH + micros * _MICROSECOND


def check_text(text: str) -> str:
    """The text itself. Raises InvalidInput if a database cannot hold it."""
    if not is_storable(text):
        raise InvalidInput(f"the text {text[:50]!r} holds a NUL or half of a surrogate pair, which no database keeps")
    return text


def check_whole(number: int) -> int:
    """The integer itself. Raises InvalidInput if it needs more than 64 bits."""
    if not -MAX_WHOLE - 1 <= number <= MAX_WHOLE:
        raise InvalidInput(f"the integer {_short(number)} needs more than 64 bits: keep it below 2^63")
    return number


def encode(value: Any) -> str:
    """A JSON value as text: floats to the last bit, non-finite ones as ``"NaN"``, ``"Infinity"``, ``"-Infinity"``."""
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError):  # not finite, or no JSON: the slow way knows
        return _ENCODER.encode(_encodable(value))
    if text.isascii() and "\\u0000" not in text and not _LONG.search(text):
        return text
    return _ENCODER.encode(_encodable(value))


def decode(text: str) -> Any:
    """The JSON value of a text of :func:`encode`; non-finite numbers stay strings."""
    return json.loads(text)


def encode_metrics(values: Mapping[str, float]) -> str:
    """Metrics of one step as JSON text, as :func:`encode` writes them.

    Raises:
        InvalidInput: a number is no float, or a name is no text that a database keeps.
    """
    try:
        floats = {name: float(value) for name, value in values.items()}
    except OverflowError:
        raise InvalidInput("a metric is an integer too large for a float: report a float") from None
    try:
        text = to_json(floats, inf_nan_mode="strings").decode()
    except PydanticSerializationError:
        return encode(floats)  # which says what is wrong with a name
    return encode(floats) if "\\u0000" in text else text


def decode_metrics(text: str) -> dict[str, float]:
    """What :func:`encode_metrics` was given, to the bit."""
    if ':"' not in text:  # nothing that is not finite
        return dict[str, float](from_json(text))
    return {n: _NON_FINITE[v] if isinstance(v, str) else v for n, v in from_json(text).items()}


def encode_study(spec: StudySpec) -> str:
    """A study's document as JSON text."""
    return check_text(spec.model_dump_json())


@lru_cache(maxsize=256)
def decode_study(text: str) -> StudySpec:
    """The study of a text of :func:`encode_study`."""
    return StudySpec.model_validate_json(text)


def same_study(text: str, spec: StudySpec) -> bool:
    """Whether a stored document says what the spec says; the order of keys does not matter, 1 and true differ."""
    stored = decode_study(text)  # what a later version added has its default
    return bool(_sorted(stored.model_dump_json()) == _sorted(spec.model_dump_json()))


def encode_stage(spec: StageSpec) -> str:
    """A stage's document as JSON text."""
    return check_text(spec.model_dump_json())


@lru_cache(maxsize=256)
def decode_stage(text: str) -> StageSpec:
    """The stage of a text of :func:`encode_stage`."""
    return StageSpec.model_validate_json(text)


def encode_space(space: Space) -> str:
    """A space as JSON text."""
    return check_text(_SPACE.dump_json(space).decode())


def decode_space(text: str) -> Space:
    """The space of a text of :func:`encode_space`."""
    return _SPACE.validate_json(text)


def chunks(items: Sequence[T], size: int = 10_000) -> Iterator[Sequence[T]]:
    """The items in runs short enough for one ``IN``: SQLite allows 32,766 variables, PostgreSQL 65,535."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _sorted(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


def _encodable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else _name(value)
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return check_whole(value)
    if isinstance(value, dict):
        return {check_text(str(key)): _encodable(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(child) for child in value]
    raise InvalidInput(f"a value of type {type(value).__name__} is not JSON")


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _short(number: int) -> str:
    return str(number) if number.bit_length() < 100 else f"of {number.bit_length()} bits"
