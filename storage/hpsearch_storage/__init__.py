"""Where studies live: :class:`hpsearch.store.Store` on SQLite and PostgreSQL."""

from hpsearch_storage.opening import open_store
from hpsearch_storage.store import SqlStore

__all__ = ["SqlStore", "open_store"]
