"""The HTTP interface and the pages of hpsearch."""
