"""Figures of a study, by kind: the same in the browser, over HTTP and in a notebook."""

import contextlib

from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.kinds import KINDS, Kind, make_figure, shown_kinds

__all__ = ["KINDS", "FigureData", "Kind", "make_figure", "shown_kinds"]

# Plotly takes pandas from sys.modules, even while another thread (Optuna's importances) is half through importing it.
with contextlib.suppress(ModuleNotFoundError):
    import pandas  # noqa: F401
