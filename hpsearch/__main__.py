"""``python -m hpsearch``."""

from hpsearch.cli import main

main()
