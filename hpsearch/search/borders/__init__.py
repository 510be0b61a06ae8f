"""Border flags: is the best at the border of its range, and does the optimum lie beyond?"""

from hpsearch.search.borders.evidence import Cliff, Evidence, border_evidence
from hpsearch.search.borders.flag import Flag, FlagVerdict, Level, Side
from hpsearch.search.borders.flags import border_flags, worth_extending
from hpsearch.search.borders.proposals import natural_end, next_range
from hpsearch.search.borders.results import Results, results

__all__ = [
    "Cliff",
    "Evidence",
    "Flag",
    "FlagVerdict",
    "Level",
    "Results",
    "Side",
    "border_evidence",
    "border_flags",
    "natural_end",
    "next_range",
    "results",
    "worth_extending",
]
