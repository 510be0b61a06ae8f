"""``hpsearch doctor``: what keeps this machine from working well, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from hpsearch import display
from hpsearch._version import __version__
from hpsearch.cli.machine import Check, Status, machine
from hpsearch.cli.options import DEFAULT_STORE, FAILED, AuthToken, Json, Server, StoreUrl
from hpsearch.defaults import DEFAULT_SERVER
from hpsearch.errors import HpsearchError, ServerRefused, ServerUnreachable

SECONDS = 5.0
"""How long a server may take to answer."""


def doctor(
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
    store: StoreUrl = DEFAULT_STORE,
    checkpoints: Annotated[
        str | None, typer.Option(envvar="HPSEARCH_CHECKPOINTS", help="folder or URL that workers are given")
    ] = None,
    json: Json = False,
) -> None:
    """Check devices, threads, store, server and folders, and say what to do; status 1 where something fails."""
    found = []
    for check in chain(machine(checkpoints), store_checks(store), server_checks(server, token)):
        found.append(check)
        if not json:
            display.out.print(display.doctor_line(check.name, check.status.value, check.message), soft_wrap=True)
    if json:
        display.show_json([{"name": c.name, "status": c.status.value, "message": c.message} for c in found])
    if any(check.status is Status.FAIL for check in found):
        raise typer.Exit(FAILED)


def store_checks(store: str) -> Iterator[Check]:
    """Whether the store can be opened, has our schema, and lies where it is safe. Nothing is written."""
    try:
        from hpsearch_storage import maintenance, migrations
        from hpsearch_storage.urls import file_of, parse_url, shown
    except ModuleNotFoundError as error:
        yield Check("store", Status.PASS, f"not looked at: {error.name} of hpsearch[server] is not installed here")
        return
    try:
        url = parse_url(store)
        path = file_of(url)
        if path is not None:
            yield _place_of(path)
        if path is not None and not path.exists():
            if not path.absolute().parent.is_dir():
                raise HpsearchError(f"there is no folder {path.absolute().parent}: create it, or give another --store")
            yield Check("store", Status.PASS, f"{path} is not there yet: the first server makes it")
            return
        with maintenance.opened(store) as database:
            migrations.refuse(database)
            version = database.read(migrations.current_version)
    except HpsearchError as error:
        yield Check("store", Status.FAIL, f"{error}")
        return
    yield _schema(shown(url), version, migrations.newest_version())


def _place_of(path: Path) -> Check:
    from hpsearch_storage.filesystems import network_type

    kind = network_type(path)
    if kind is not None:
        text = (
            f"{path} lies on {kind}, a network file system, where SQLite can lose data: use a local disk or PostgreSQL"
        )
        return Check("store's file system", Status.WARN, text)
    blocked = path if path.exists() else path.absolute().parent
    if blocked.exists() and not os.access(blocked, os.W_OK):
        return Check("store's file system", Status.FAIL, f"{blocked} cannot be written: mend its rights")
    return Check("store's file system", Status.PASS, "local, and writable")


def _schema(where: str, version: str | None, newest: str) -> Check:
    if version == newest:
        return Check("store", Status.PASS, f"{where} answers, schema {version}")
    old = "is empty" if version is None else f"has the schema {version}"
    todo = f"the next server brings it to {newest}, and so does hpsearch db upgrade"
    if version is None:
        return Check("store", Status.PASS, f"{where} answers and {old}; {todo}")
    return Check("store", Status.WARN, f"{where} {old}; {todo}: make a backup first (hpsearch db backup)")


def server_checks(server: str, token: str | None) -> Iterator[Check]:
    """Whether a server answers, is ready, is of this version, and takes the token."""
    from hpsearch.http import Connection

    try:
        connection = Connection(server, token=token, timeout_seconds=SECONDS)
    except ServerUnreachable as error:
        yield Check("server", Status.FAIL, f"{error}")
        return
    try:
        connection.call("GET", "/readyz")
        yield Check("server", Status.PASS, f"{server} is ready")
        yield _known(connection, token)
    except ServerUnreachable as error:
        meant = server != DEFAULT_SERVER  # nobody has to have one on this machine
        yield Check("server", Status.FAIL if meant else Status.WARN, f"{error}")
    except ServerRefused as error:
        yield Check("server", Status.FAIL, f"{server} is not ready: {error}; its log says why")
    finally:
        connection.close()


def _known(connection: Any, token: str | None) -> Check:
    try:
        version = connection.call("GET", "/openapi.json")["info"]["version"]
    except ServerRefused as error:
        if error.status == 403:
            return Check("token", Status.PASS, "known, without the scope read: it is for workers or submitting alone")
        todo = "this one is not known, revoked or expired" if token else "it wants one, give --token or HPSEARCH_TOKEN"
        return Check("token", Status.FAIL, f"{todo}; hpsearch token create makes one, where the store is")
    except (KeyError, TypeError, ValueError):
        return Check("server version", Status.FAIL, f"{connection.server} is no hpsearch server: mend --server")
    if version != __version__:
        differ = f"the server is hpsearch {version}, and this is {__version__}"
        return Check("server version", Status.WARN, f"{differ}: install the same version on both")
    return Check("server version", Status.PASS, f"{version}, as here{'; the token is known' if token else ''}")
