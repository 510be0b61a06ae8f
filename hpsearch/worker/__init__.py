"""Workers: processes that lease trials, run them and report."""
