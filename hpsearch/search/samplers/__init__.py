"""What draws the params of trials: random points, sequences that spread evenly, grids, and Optuna's samplers."""

from hpsearch.search.samplers.adaptive import AdaptiveSampler, adaptive_numbers
from hpsearch.search.samplers.grid import grid_points
from hpsearch.search.samplers.planning import check_samplers, n_planned, stage_fault
from hpsearch.search.samplers.sequences import spread

__all__ = [
    "AdaptiveSampler",
    "adaptive_numbers",
    "check_samplers",
    "grid_points",
    "n_planned",
    "spread",
    "stage_fault",
]
