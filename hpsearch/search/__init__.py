"""Pure functions of finished trials and a seed: sampling, ranking, refining, borders.

Modules say ``import scipy`` and ``scipy.stats.norm``: SciPy then loads its statistics, which take longer than all else
that a server starts with, when they are first used.
"""
