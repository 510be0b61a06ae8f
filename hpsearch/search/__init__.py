"""Pure functions of finished trials and a seed: sampling, ranking, refining, borders."""
