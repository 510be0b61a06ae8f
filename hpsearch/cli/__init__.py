"""The command line. Here the parts are put together: the only room of the core that may import the server's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from hpsearch import display
from hpsearch._version import __version__
from hpsearch.cli import again, database, doctor, init, running, studies, tokens
from hpsearch.cli.examples import epilog
from hpsearch.cli.options import BAD_INPUT, FAILED, UNREACHABLE, read_secrets
from hpsearch.errors import HpsearchError, InvalidInput, ServerError, ServerRefused, ServerUnreachable

app = typer.Typer(
    name="hpsearch",
    help="Hyperparameter search as a service: coarse to fine on a log scale, with honest flags at range borders.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
COMMANDS: tuple[Callable[..., None], ...] = (
    init.init,
    running.run,
    running.serve,
    running.worker,
    studies.submit,
    studies.status,
    studies.best,
    studies.flags,
    studies.acknowledge,
    studies.stages,
    studies.analysis,
    studies.open_stage,
    studies.pause,
    studies.resume,
    studies.cancel,
    studies.delete,
    studies.export,
    database.import_study,
    again.read_test,
    again.replay,
    doctor.doctor,
)
NAMES = {studies.open_stage: "open", again.read_test: "test", database.import_study: "import"}
"""Of the commands that are not called as their functions are."""
for command in COMMANDS:
    name = NAMES.get(command, command.__name__)
    app.command(name, epilog=epilog(name))(command)
app.add_typer(database.app, name="db")
app.add_typer(tokens.app, name="token")


def main() -> None:
    """Run the command line; errors of ours become one sentence and an exit status."""
    try:
        read_secrets()
        app()
    except ServerUnreachable as error:
        _say(error, UNREACHABLE)
    except (InvalidInput, ServerRefused) as error:
        _say(error, BAD_INPUT)
    except HpsearchError as error:
        _say(error, BAD_INPUT if not isinstance(error, ServerError) else FAILED)


def _say(error: HpsearchError, status: int) -> None:
    display.err.print(f"hpsearch: {error}", style="red", markup=False, soft_wrap=True)
    sys.exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hpsearch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    del version


__all__ = ["app", "main"]
