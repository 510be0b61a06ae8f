"""What the commands share: their options, the client, the parts of a server."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from hpsearch import logs
from hpsearch.defaults import DEFAULT_SERVER
from hpsearch.errors import HpsearchError, InvalidInput

DEFAULT_STORE = "sqlite:///hpsearch.db"
SECRETS = ("HPSEARCH_TOKEN", "HPSEARCH_STORE")
"""Variables that may be read from a file: that which the variable of the same name and ``_FILE`` names."""
FAILED, BAD_INPUT, UNREACHABLE = 1, 2, 3
"""Exit statuses; 0 is done."""


def study_names() -> list[str]:
    """For the shell to complete: the studies of the server that the environment names, or of the usual one."""
    from hpsearch.http import Connection

    server = os.environ.get("HPSEARCH_SERVER") or DEFAULT_SERVER
    try:
        connection = Connection(server, token=os.environ.get("HPSEARCH_TOKEN"), timeout_seconds=1)
        return [study["name"] for study in connection.call("GET", "/api/v1/studies", params={"limit": 100})["items"]]
    except HpsearchError:
        return []


SpecFile = Annotated[Path, typer.Argument(help="a study, YAML or JSON", metavar="SPEC")]
Name = Annotated[str, typer.Argument(help="name of the study", autocompletion=study_names)]
Server = Annotated[str, typer.Option("--server", envvar="HPSEARCH_SERVER", help="URL of the server")]
AuthToken = Annotated[
    str | None, typer.Option("--token", envvar="HPSEARCH_TOKEN", help="bearer token", show_default=False)
]
StoreUrl = Annotated[
    str, typer.Option("--store", envvar="HPSEARCH_STORE", help="sqlite:///FILE or postgresql://USER@HOST/DATABASE")
]
Host = Annotated[str, typer.Option(help="address to listen on")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")]
Json = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
Devices = Annotated[str, typer.Option("--devices", help="devices of the workers: auto, or cuda:0,cuda:1,…")]
Pack = Annotated[str, typer.Option("--pack", help="trials trained at a time as one model: auto, or a number")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="pattern of entry points whose code workers may run; repeatable", metavar="PATTERN"),
]
TaskPath = Annotated[
    list[Path] | None,
    typer.Option("--path", help="folder with modules of tasks, beside the working directory; repeatable"),
]
LogFormat = Annotated[str, typer.Option("--log-format", help="text, or json: one object a line")]
LogLevel = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error")]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="folder that the data of studies lie in; the working directory by default"),
]


def read_secrets() -> None:
    """Set variables from the files that hold them. Raises InvalidInput."""
    for name in SECRETS:
        path = os.environ.pop(f"{name}_FILE", None)
        if path is None:
            continue
        if os.environ.get(name):
            raise InvalidInput(f"{name} and {name}_FILE are both set: leave one out")
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{name}_FILE={path} cannot be read: {error}") from None
        if not value:
            raise InvalidInput(f"{name}_FILE={path} is empty: write the value of {name} into it")
        os.environ[name] = value


def configure_logs(level: str, form: str) -> None:
    """Send logs to standard error. Raises InvalidInput."""
    if level not in ("debug", "info", "warning", "error"):
        raise InvalidInput(f"--log-level {level}: give debug, info, warning or error")
    if form not in ("text", "json"):
        raise InvalidInput(f"--log-format {form}: give text or json")
    logs.configure(logging.getLevelNamesMapping()[level.upper()], "json" if form == "json" else "text")


@contextmanager
def connected(server: str, token: str | None) -> Iterator[Any]:
    """A client of a server, closed in the end."""
    from hpsearch.client import Client

    client = Client(server, token=token)
    try:
        yield client
    finally:
        client.close()


def server_parts() -> tuple[Any, Any]:
    """What serves; a client's installation has it not."""
    try:
        from hpsearch_api.server import listen, serving
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[server]'") from None
    return serving, listen


def train_parts() -> None:
    """Load what reads data and trains. Raises InvalidInput where it is not installed."""
    try:
        import hpsearch.training.tables  # noqa: F401 - heavy: torch and pyarrow
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[train]'") from None


def needs_training(kind: str) -> None:
    """Raise InvalidInput where workers of this machine could not run an objective of this kind."""
    if kind in ("train", "task") and find_spec("torch") is None:
        raise InvalidInput("torch is not installed: pip install 'hpsearch[train]'")
