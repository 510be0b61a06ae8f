"""Workers as last seen."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, exists, func, select, update

from hpsearch.store import WorkerHello
from hpsearch.study import Worker
from hpsearch.trial import AttemptState
from hpsearch_storage import tables
from hpsearch_storage.dialects import upsert


def greet(connection: Connection, hello: WorkerHello, *, now: datetime) -> None:
    """Note a worker that asks for leases. Its row stays locked, so that two requests of one worker take turns."""
    statement = upsert(connection, tables.workers).values(
        name=hello.name, info=hello.info, first_seen=now, last_seen=now
    )
    new = statement.excluded
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"info": new.info, "last_seen": new.last_seen})
    )


def seen(connection: Connection, name: str, *, now: datetime) -> None:
    """Note that a worker was heard of."""
    connection.execute(update(tables.workers).where(tables.workers.c.name == name).values(last_seen=now))


def every(connection: Connection) -> list[Worker]:
    """All workers, the last seen first."""
    attempts, workers = tables.attempts.c, tables.workers.c
    held = (
        select(func.count())
        .where(attempts.worker == workers.name, attempts.state == AttemptState.RUNNING)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(tables.workers, held.label("n_leases")).order_by(workers.last_seen.desc(), workers.name)
    )
    return [Worker(row.name, row.info, row.first_seen, row.last_seen, row.n_leases) for row in rows]


def n_others(connection: Connection, name: str, since: datetime) -> int:
    """How many other workers were heard of since then and hold nothing."""
    attempts, workers = tables.attempts.c, tables.workers.c
    holds = exists().where(attempts.worker == workers.name, attempts.state == AttemptState.RUNNING)
    query = select(func.count()).select_from(tables.workers)
    query = query.where(workers.last_seen >= since, workers.name != name, ~holds)
    return connection.execute(query).scalar_one()
