"""What ``kind: task``, ``kind: python`` and ``kind: command`` share: values of the user's own, and limits."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, Field

from hpsearch.document import Document, Text
from hpsearch.space import Value

ENTRYPOINT = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""``module:name``, as Python imports it."""


def _finite(value: Value) -> Value:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError("the number must be finite")
    return value


FixedParams = Annotated[dict[Text, Annotated[Value, AfterValidator(_finite)]], Field(max_length=100)]
"""Params that are not searched, given beside the trial's own."""


class Limits(Document):
    """What one trial may use. A trial that goes past a limit is stopped, and fails."""

    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Wall-clock time."""
    memory_mib: Annotated[int, Field(ge=1, le=2**30)] | None = None
    """Resident memory of all its processes together."""
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """How long it has between SIGTERM and SIGKILL, whatever it is stopped for."""
