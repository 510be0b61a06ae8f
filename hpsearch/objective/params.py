"""A trial's params, set into the document of an objective."""

from __future__ import annotations

import copy
from typing import Any

from hpsearch.space import Params

ALIASES = {"lr": "optimizer.lr", "reg": "regularization.l2"}
"""Short names of the parameters that everybody searches."""


def set_params(objective: dict[str, Any], params: Params) -> dict[str, Any]:
    """A copy of an objective document with each parameter at its dotted path (or alias)."""
    document = copy.deepcopy(objective)
    for name, value in params.items():
        *parents, leaf = ALIASES.get(name, name).split(".")
        node = document
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return document
