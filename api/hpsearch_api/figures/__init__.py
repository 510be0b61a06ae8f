"""Figures of a study, by kind: the same in the browser, over HTTP and in a notebook."""

from hpsearch_api.figures.data import FigureData
from hpsearch_api.figures.kinds import KINDS, Kind, make_figure, shown_kinds

__all__ = ["KINDS", "FigureData", "Kind", "make_figure", "shown_kinds"]
