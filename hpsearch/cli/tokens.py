"""Commands for whoever keeps the server: make, list and revoke the tokens of a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from hpsearch import display
from hpsearch.cli.database import duration
from hpsearch.cli.examples import epilog
from hpsearch.cli.options import DEFAULT_STORE, Json, StoreUrl, server_parts
from hpsearch.errors import InvalidInput

app = typer.Typer(help="Tokens of a store: who may talk to its servers, and what for.", no_args_is_help=True)


@app.command(epilog=epilog("token create"))
def create(
    name: Annotated[str, typer.Argument(help="what it is for; never used again")],
    scope: Annotated[list[str] | None, typer.Option(help="read, submit, work or admin; repeatable")] = None,
    expires: Annotated[str | None, typer.Option(help="in 12h, 90d, …; never by default")] = None,
    store: StoreUrl = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Make a token and print it. It is shown this once, and kept nowhere."""
    now = datetime.now(UTC)
    if not scope:
        raise InvalidInput("say what the token is for: --scope read, submit, work or admin; repeatable")
    with _tokens(store) as tokens:
        secret = tokens.create(name, scope, expires_at=None if expires is None else now + duration(expires), now=now)
    if json:
        display.show_json({"name": name, "token": secret, "scopes": scope})
        return
    typer.echo(secret)
    display.err.print("keep it: it cannot be shown again; give it as HPSEARCH_TOKEN, or log in with it", soft_wrap=True)


@app.command("list", epilog=epilog("token list"))
def list_tokens(store: StoreUrl = DEFAULT_STORE, json: Json = False) -> None:
    """Every token with its scopes and how it stands."""
    now = datetime.now(UTC)
    with _tokens(store) as tokens:
        found = [_row(token, now) for token in tokens.every()]
    if json:
        display.show_json(found)
    elif not found:
        display.out.print("no tokens: a server of this store answers on this machine only, to everybody on it")
    else:
        table = Table("name", "scopes", "state", "created", "expires")
        for row in found:
            table.add_row(
                row["name"], " ".join(row["scopes"]), row["state"], row["created_at"], row["expires_at"] or "never"
            )
        display.out.print(table)


@app.command(epilog=epilog("token revoke"))
def revoke(name: Annotated[str, typer.Argument(help="name of the token")], store: StoreUrl = DEFAULT_STORE) -> None:
    """Let a token, and whoever logged in with it, open nothing any more; servers know within 5 seconds."""
    with _tokens(store) as tokens:
        tokens.revoke(name, now=datetime.now(UTC))
    display.out.print(f"{name} is revoked", markup=False)


@contextmanager
def _tokens(store: str) -> Iterator[Any]:
    server_parts()
    from hpsearch_storage import open_store

    opened = open_store(store)
    try:
        yield opened.tokens
    finally:
        opened.close()


def _row(token: Any, now: datetime) -> dict[str, Any]:
    state = "valid" if token.is_valid(now) else ("revoked" if token.revoked_at else "expired")
    return {
        "name": token.name,
        "scopes": list(token.scopes),
        "state": state,
        "created_at": _second(token.created_at),
        "expires_at": None if token.expires_at is None else _second(token.expires_at),
        "revoked_at": None if token.revoked_at is None else _second(token.revoked_at),
    }


def _second(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
