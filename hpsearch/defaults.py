"""What holds where nothing else is said; loaded by ``hpsearch --help``, so without anything heavy."""

DEFAULT_SERVER = "http://127.0.0.1:8765"
