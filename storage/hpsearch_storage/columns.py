"""Column types: what a Python value becomes on its way into either database, and back."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Dialect, Double, Integer, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from hpsearch_storage.codec import check_text, check_whole, decode, encode, from_micros, to_micros


class Whole(TypeDecorator[int]):
    """A 64-bit integer; a larger one is InvalidInput."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, _dialect: Dialect) -> int | None:
        """Check the range."""
        return None if value is None else check_whole(value)


class Key(Whole):
    """A primary key that the database counts up."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """SQLite counts up only what is declared INTEGER, which has 64 bits there."""
        return dialect.type_descriptor(Integer() if dialect.name == "sqlite" else BigInteger())


class Words(TypeDecorator[str]):
    """Text without NUL and half surrogates; another is InvalidInput."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        """Check the text."""
        return None if value is None else check_text(value)


class Moment(TypeDecorator[datetime]):
    """An aware time as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> int | None:
        """To microseconds."""
        return None if value is None else to_micros(value)

    def process_result_value(self, value: int | None, _dialect: Dialect) -> datetime | None:
        """From microseconds."""
        return None if value is None else from_micros(value)


class JsonText(TypeDecorator[Any]):
    """A JSON value as text: no database's own JSON type keeps 1.0 apart from 1, or -0.0."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Dialect) -> str | None:
        """To text."""
        return None if value is None else encode(value)

    def process_result_value(self, value: str | None, _dialect: Dialect) -> Any:
        """From text."""
        return None if value is None else decode(value)


class Word(TypeDecorator[StrEnum]):
    """A member of an enum by its value."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: StrEnum | None, _dialect: Dialect) -> str | None:
        """To its value."""
        return None if value is None else value.value

    def process_result_value(self, value: str | None, _dialect: Dialect) -> StrEnum | None:
        """From its value."""
        return None if value is None else self.kind(value)


Real = Double
"""A float of 64 bits."""
