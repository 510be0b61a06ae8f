"""The user's own training in Python: ``kind: python``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpsearch.document import Document, Text
from hpsearch.objective.own import ENTRYPOINT, FixedParams, Limits


class PythonObjective(Document):
    """Call a function of the user's with a :class:`hpsearch.RunningTrial`. Any parameter and any metric."""

    kind: Literal["python"]
    entrypoint: Annotated[Text, Field(pattern=ENTRYPOINT)]
    """``module:function``, or ``module:Class``: made once per worker without arguments, then called for each trial."""
    params: FixedParams = {}
    limits: Limits = Limits()
