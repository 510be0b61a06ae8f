"""Training of built-in models: torch lives here alone.

:func:`load_dataset` reads and splits the data, :class:`Pack` trains K trials as one stacked model.
The library never sets torch's threads or modes: the worker that calls it does.
"""

from hpsearch.errors import Interrupted
from hpsearch.training.data import Dataset, load_dataset
from hpsearch.training.pack import EpochResult, Member, Pack, shape_key

__all__ = ["Dataset", "EpochResult", "Interrupted", "Member", "Pack", "load_dataset", "shape_key"]
