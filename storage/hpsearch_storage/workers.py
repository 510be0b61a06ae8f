"""Workers as last seen."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from hpsearch.store import WorkerHello
from hpsearch.study import Worker
from hpsearch_storage import tables
from hpsearch_storage.codec import check_text, encode, to_micros
from hpsearch_storage.prepared import Bulk, Statement

_AGAIN = "ON CONFLICT (name) DO UPDATE SET info = excluded.info, last_seen = excluded.last_seen"
_GREET = Bulk(
    sqlite=f"INSERT INTO workers (name, info, first_seen, last_seen) VALUES (?, ?, ?, ?) {_AGAIN}",
    postgres=f"""INSERT INTO workers (name, info, first_seen, last_seen)
        SELECT name, info, first_seen, last_seen FROM {{rows}} {_AGAIN}""",
    types={"name": "text", "info": "text", "first_seen": "bigint", "last_seen": "bigint"},
)
_SEEN = Bulk(
    sqlite="UPDATE workers SET last_seen = ? WHERE name = ?",
    postgres="UPDATE workers SET last_seen = given.last_seen FROM {rows} WHERE workers.name = given.name",
    types={"last_seen": "bigint", "name": "text"},
)
_N_OTHERS = Statement(
    """SELECT count(*) FROM workers WHERE last_seen >= %s AND name <> %s AND NOT EXISTS
    (SELECT 1 FROM attempts WHERE attempts.worker = workers.name AND attempts.state = 'running')"""
)
SEEN_EVERY = timedelta(seconds=1)
"""A worker that is heard of again within so long is not noted again."""


class Heard:
    """When this process last noted which worker: reports come often, and each note is a page to write."""

    def __init__(self) -> None:
        self._noted: dict[str, datetime] = {}

    def seen(self, connection: Connection, names: Iterable[str], *, now: datetime) -> None:
        """Note that workers were heard of, but for those that were noted just now."""
        new = sorted(self.due(names, now=now))
        if len(self._noted) > 10_000:
            self._noted.clear()
        self._noted.update(dict.fromkeys(new, now))
        _SEEN.run(connection, [(to_micros(now), check_text(name)) for name in new])

    def due(self, names: Iterable[str], *, now: datetime) -> set[str]:
        """Those that would be noted."""
        return {name for name in names if self._is_due(name, now)}

    def _is_due(self, name: str, now: datetime) -> bool:
        last = self._noted.get(name)
        return last is None or abs(now - last) >= SEEN_EVERY


def greet(connection: Connection, hellos: Iterable[WorkerHello], *, now: datetime) -> None:
    """Note workers that ask for leases. Their rows stay locked, so that two requests of one worker take turns."""
    moment = to_micros(now)
    named = {check_text(hello.name): encode(hello.info) for hello in hellos}
    _GREET.run(connection, [(name, named[name], moment, moment) for name in sorted(named)])


def every(connection: Connection) -> list[Worker]:
    """All workers, the last seen first."""
    attempts, workers = tables.attempts.c, tables.workers.c
    held = select(func.count()).where(attempts.worker == workers.name, tables.HELD).scalar_subquery()
    rows = connection.execute(
        select(tables.workers, held.label("n_leases")).order_by(workers.last_seen.desc(), workers.name)
    )
    return [Worker(row.name, row.info, row.first_seen, row.last_seen, row.n_leases) for row in rows]


def n_others(connection: Connection, name: str, since: datetime) -> int:
    """How many other workers were heard of since then and hold nothing."""
    return int(_N_OTHERS.rows(connection, to_micros(since), check_text(name))[0][0])
