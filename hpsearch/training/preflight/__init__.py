"""Checks of a study before it spends its budget: the sanity checks of cs231n, in seconds."""

from hpsearch.training.preflight.check import Check
from hpsearch.training.preflight.run import preflight

__all__ = ["Check", "preflight"]
