"""Where Alembic enters: the caller gives the connection, and its transaction holds the whole upgrade."""

from __future__ import annotations

from alembic import context

from hpsearch_storage.migrations import VERSION_TABLE
from hpsearch_storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
