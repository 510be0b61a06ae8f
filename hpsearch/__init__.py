"""Hyperparameter search as a service: coarse to fine on a log scale, with honest flags at range borders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpsearch._version import __version__
from hpsearch.errors import HpsearchError, TrialStopped
from hpsearch.running_trial import RunningTrial

if TYPE_CHECKING:
    from hpsearch.client import Client, StudyHandle

__all__ = ["Client", "HpsearchError", "RunningTrial", "StudyHandle", "TrialStopped", "__version__"]


def __getattr__(name: str) -> Any:
    """The client comes only when asked for: it brings an HTTP client, which a store does without."""
    if name in ("Client", "StudyHandle"):
        from hpsearch import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
