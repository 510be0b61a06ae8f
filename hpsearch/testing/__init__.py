"""For tests: a store in memory, and the store's contract as tests that a new store subclasses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpsearch.testing.memory import MemoryStore

if TYPE_CHECKING:
    from hpsearch.testing.conformance import StoreConformance

__all__ = ["MemoryStore", "StoreConformance"]


def __getattr__(name: str) -> Any:
    if name == "StoreConformance":  # needs pytest, which MemoryStore does without
        from hpsearch.testing.conformance import StoreConformance

        return StoreConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
