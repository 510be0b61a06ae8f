"""What trials of users' own code wrote: one text for each trial."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select

from hpsearch.trial import AttemptState
from hpsearch_storage import attempts, studies, tables, trials
from hpsearch_storage.dialects import upsert
from hpsearch_storage.engine import Database


class Logs:
    """:class:`hpsearch.store.Logs` on SQLite or PostgreSQL. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, texts: Mapping[str, str]) -> None:
        """See Logs."""

        def work(connection: Connection) -> None:
            studies.lock_of_tokens(connection, set(texts), shared=True)
            rows = attempts.peek(connection, texts)
            found = {r.trial_id: texts[token] for token, r in rows.items() if r.state == AttemptState.RUNNING}
            if found:
                statement = upsert(connection, tables.logs)
                statement = statement.on_conflict_do_update(
                    index_elements=["trial_id"], set_={"text": statement.excluded.text}
                )
                connection.execute(statement, [{"trial_id": key, "text": found[key]} for key in sorted(found)])

        self._database.write(work)

    def of_trial(self, study_id: int, number: int) -> str | None:
        """See Logs."""

        def work(connection: Connection) -> str | None:
            trial = trials.one(connection, study_id, number)
            return connection.scalar(select(tables.logs.c.text).where(tables.logs.c.trial_id == trial.id))

        return self._database.read(work)
