"""The command line. Here the parts are put together: the only module of the core that may import the server's."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpsearch import display
from hpsearch._version import __version__
from hpsearch.allow import check_allowed, code_options, worker_options
from hpsearch.errors import HpsearchError, InvalidInput, ServerError, ServerRefused, ServerUnreachable
from hpsearch.http import DEFAULT_SERVER

if TYPE_CHECKING:
    from hpsearch.spec import StudySpec

DEFAULT_STORE = "sqlite:///hpsearch.db"
FAILED, BAD_INPUT, UNREACHABLE = 1, 2, 3
"""Exit statuses; 0 is done."""

app = typer.Typer(
    name="hpsearch",
    help="Hyperparameter search as a service: coarse to fine on a log scale, with honest flags at range borders.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

SpecFile = Annotated[Path, typer.Argument(help="a study, YAML or JSON", metavar="SPEC")]
Name = Annotated[str, typer.Argument(help="name of the study")]
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


def main() -> None:
    """Run the command line; errors of ours become one sentence and an exit status."""
    try:
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


def _log(level: int) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)


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


@app.command()
def run(
    spec: SpecFile,
    workers: Annotated[
        int | None, typer.Option(min=1, help="worker processes; one per GPU, else per core, by default")
    ] = None,
    devices: Devices = "auto",
    store: StoreUrl = DEFAULT_STORE,
    port: Port = 8765,
    pack: Pack = "auto",
    allow: Allow = None,
    override: Annotated[bool, typer.Option("--override", help="start in spite of failed checks")] = False,
    json: Json = False,
) -> None:
    """Run a study to its end: server, workers and progress in one command.

    Run it again after an interruption, and it goes on where it was.
    """
    from hpsearch.client import Client
    from hpsearch.spec import load_study
    from hpsearch.worker.supervisor import Supervisor, find_devices

    _log(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    study_spec = load_study(spec)
    check_allowed(study_spec, allow or [])
    serving, listen = _server_parts()
    supervisor = None
    with serving(store, listen("127.0.0.1", port)) as url:
        client = Client(url)
        study = _submit(client, study_spec, override=override)
        if not json:
            display.out.print(f"study [bold]{study.name}[/] at [cyan]{url}/studies/{study.name}[/]", soft_wrap=True)
        document = study.read()
        if document["state"] == "paused":
            study.resume()
        try:
            if document["state"] not in ("completed", "failed", "cancelled"):
                arguments = ["--pack", pack, *worker_options(allow, spec.parent)]
                supervisor = Supervisor(url, workers, arguments, devices=find_devices(devices))
                supervisor.start()
                with display.LiveProgress() as progress:
                    _wait(study, None if json else progress, override=override)
        except KeyboardInterrupt:
            display.err.print("interrupted: what has finished is kept; the same command goes on from here")
            raise typer.Exit(130) from None
        finally:
            if supervisor is not None:
                supervisor.stop()
        document = {**study.read(), "checks": study.preflight}
        verdicts = Counter(verdict["name"] for trial in study.trials() for verdict in trial["verdicts"])
    _end(document, verdicts, store, code=code_options(study_spec, spec.parent), json=json)


def _submit(client: Any, spec: StudySpec, *, override: bool) -> Any:
    """Submit a study; one that its checks held is checked again, for what was wrong may have been mended."""
    study = client.submit(spec)
    document = study.read()
    if document["state"] == "preflight" and document["preflight"] == "failed" and not override:
        study.delete()
        study = client.submit(spec)
    return study


def _wait(study: Any, progress: display.LiveProgress | None, *, override: bool) -> None:
    def look(document: dict[str, Any]) -> None:
        if override and document["state"] == "preflight" and document["preflight"] == "failed":
            study.resume()
        if progress is not None:
            progress.update(document)

    while True:
        try:
            study.wait(on_progress=look)
        except HpsearchError as error:
            if isinstance(error, ServerError):
                raise
            if override and study.read()["state"] == "running":
                continue
        return


def _end(document: dict[str, Any], verdicts: Counter[str], store: str, *, code: str, json: bool) -> None:
    """Show how a study ended, and leave with the status that says so."""
    if json:
        display.show_json(document)
    elif document["state"] == "completed":
        option = "" if store == DEFAULT_STORE else f" --store {shlex.quote(store)}"
        replay = f"hpsearch replay {document['name']} {document['best']['trial']}{option}{code}"
        display.out.print("\n".join(display.check_lines(document["checks"])), soft_wrap=True)
        display.out.print(display.stage_table(document))
        display.out.print(display.verdict_line(verdicts), soft_wrap=True)
        display.out.print(display.winner(document, replay=replay))
        display.out.print(f"look at it in a browser: [cyan]hpsearch serve{option}[/]", soft_wrap=True)
    else:
        reason = f": {document['reason']}" if document["reason"] else ""
        display.err.print("\n".join(display.check_lines(document["checks"])), soft_wrap=True)
        if document["state"] == "preflight":
            reason += "; mend it, or run with --override"
        display.err.print(f"the study {document['name']}: {document['state']}{reason}", style="red", markup=False)
    if document["state"] != "completed":
        raise typer.Exit(FAILED)


def _server_parts() -> tuple[Any, Any]:
    """What serves; a client's installation has it not."""
    try:
        from hpsearch_api.server import listen, serving
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[server]'") from None
    return serving, listen


@app.command()
def serve(
    workers: Annotated[int, typer.Option(min=0, help="worker processes to run beside the server")] = 0,
    devices: Devices = "auto",
    store: StoreUrl = DEFAULT_STORE,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    token: AuthToken = None,
    pack: Pack = "auto",
    allow: Allow = None,
    lease_seconds: Annotated[float, typer.Option(min=1, help="how long a silent worker keeps its trials")] = 30,
) -> None:
    """Serve the HTTP interface and the page until stopped."""
    _log(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    _server_parts()
    from hpsearch.worker.supervisor import Supervisor, find_devices
    from hpsearch_api import server

    if token is not None:
        os.environ["HPSEARCH_TOKEN"] = token  # for the workers started here
    listener = server.listen(host, port, token=token)
    url = server.url_of(listener)
    arguments = ["--pack", pack, *worker_options(allow)]
    supervisor = Supervisor(url, workers, arguments, devices=find_devices(devices)) if workers else None

    def ready() -> None:
        typer.echo(f"serving {url}  (API: {url}/docs, store: {store.split('@')[-1]})")
        if supervisor is not None:
            supervisor.start()

    try:
        server.serve(store, listener, token=token, lease_seconds=lease_seconds, on_ready=ready)
    finally:
        if supervisor is not None:
            supervisor.stop()


@app.command()
def worker(
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
    pack: Pack = "auto",
    study: Annotated[str | None, typer.Option(help="work for this study alone")] = None,
    name: Annotated[str | None, typer.Option(help="stable identity; host and process id by default")] = None,
    threads: Annotated[int, typer.Option(min=1, help="threads of this worker")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, mps or cuda:N")] = "auto",
    checkpoints: Annotated[
        str | None, typer.Option(envvar="HPSEARCH_CHECKPOINTS", help="folder or URL where retried trials go on from")
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="training between two checkpoints")] = 10,
    allow: Allow = None,
    path: TaskPath = None,
) -> None:
    """Lease trials from a server and train them, until stopped."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    _log(logging.WARNING)
    import platform

    from hpsearch.http import Connection
    from hpsearch.worker.loop import Runner, stop_on_signals, stop_with_parent, work
    from hpsearch.worker.session import Session

    width = _pack_width(pack)
    stop = threading.Event()
    stop_on_signals(stop)
    if parent := os.environ.get("HPSEARCH_PARENT"):
        stop_with_parent(stop, int(parent))
    try:
        from hpsearch.training.devices import devices
        from hpsearch.worker.checkpoints import Checkpoints, default_folder
        from hpsearch.worker.task import TaskRunner
        from hpsearch.worker.train import TrainRunner
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[train]'") from None
    known = ["cpu", *devices()]
    if device not in ("auto", *known):
        raise InvalidInput(f"--device {device} is not on this machine: it has {', '.join(dict.fromkeys(known))}")
    chosen = devices()[0] if device == "auto" else device
    kept = Checkpoints(checkpoints or default_folder(), every_seconds=checkpoint_seconds)
    runners: dict[str, Runner] = {
        "train": TrainRunner(
            device=chosen, threads=threads, width=width, n_workers=os.cpu_count() or 1, checkpoints=kept
        )
    }
    if allow:
        runners["task"] = TaskRunner(
            allow=allow, folders=path or [], device=chosen, threads=threads, width=width, checkpoints=kept
        )
    info = {"device": chosen, "threads": threads, "pack": pack}
    session = Session(Connection(server, token=token), name or f"{platform.node()}-{os.getpid()}", info, stop)
    work(session, runners, study=study)


def _pack_width(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise InvalidInput(f"--pack {text}: give auto, or a number from 1 to 1024")
    return int(text)


@contextmanager
def _client(server: str, token: str | None) -> Iterator[Any]:
    from hpsearch.client import Client

    client = Client(server, token=token)
    try:
        yield client
    finally:
        client.close()


@app.command()
def submit(spec: SpecFile, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """Submit a study to a server and return at once."""
    with _client(server, token) as client:
        study = client.submit(spec)
        if json:
            display.show_json(study.read())
        else:
            display.out.print(f"submitted: {client.server}/studies/{study.name}", soft_wrap=True)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="name of a study; all by default")] = None,
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
    json: Json = False,
) -> None:
    """How the studies stand, or one of them with its stages."""
    with _client(server, token) as client:
        studies = client.studies() if name is None else [client.study(name).read()]
    if json:
        display.show_json(studies if name is None else studies[0])
    elif not studies:
        display.out.print("no studies yet: hpsearch submit SPEC.yaml")
    else:
        display.out.print(display.study_table(studies))
        if name is not None:
            display.out.print()
            display.out.print(display.stage_table(studies[0]))
            if studies[0]["reason"]:
                display.out.print(studies[0]["reason"], markup=False)


@app.command()
def best(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """The winner so far."""
    with _client(server, token) as client:
        document = client.study(name).read()
    if json:
        display.show_json(document["best"])
    else:
        display.out.print("\n".join(display.best_lines(document)))


@app.command()
def flags(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """Borders at which the best trials lie, with p-values."""
    with _client(server, token) as client:
        document = client.study(name).read()
    if json:
        display.show_json(document["flags"])
    else:
        display.out.print("\n".join(display.flag_lines(document["flags"])), soft_wrap=True)


@app.command()
def export(
    name: Name,
    form: Annotated[str, typer.Option("--format", help="csv, json or parquet")] = "csv",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a file; standard output by default")] = None,
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
) -> None:
    """Every trial of a study as a file."""
    if form not in ("csv", "json", "parquet"):
        raise InvalidInput(f"--format {form}: give csv, json or parquet")
    with _client(server, token) as client:
        data = client.study(name).export(form)
    if output is None:
        sys.stdout.buffer.write(data)
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written: {error.strerror}") from None


@app.command()
def pause(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None) -> None:
    """Hand out no more trials of a study; running ones go on."""
    _steer(server, token, name, "pause")


@app.command()
def resume(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None) -> None:
    """Hand out trials of a paused study again."""
    _steer(server, token, name, "resume")


@app.command()
def cancel(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None) -> None:
    """End a study now; what has finished stays."""
    _steer(server, token, name, "cancel")


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
) -> None:
    """Remove a study and all that belongs to it; there is no way back."""
    if not yes and not typer.confirm(f"remove {name} and all of its trials? (hpsearch export keeps a copy)"):
        raise typer.Exit(0)
    _steer(server, token, name, "delete")


def _steer(server: str, token: str | None, name: str, action: str) -> None:
    with _client(server, token) as client:
        getattr(client.study(name), action)()
    done = {"pause": "paused", "resume": "running again", "cancel": "cancelled", "delete": "removed"}[action]
    display.out.print(f"{name} is {done}", markup=False)


@app.command("test")
def read_test(name: Name, store: StoreUrl = DEFAULT_STORE, json: Json = False) -> None:
    """Read the test split, once, for the winner of a completed study; the reading is logged."""
    _server_parts()
    try:
        from hpsearch.worker.replay import read_test_split
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[train]'") from None
    from hpsearch_storage import open_store

    opened = open_store(store)
    try:
        reading = read_test_split(opened, name)
    finally:
        opened.close()
    if json:
        display.show_json(reading)
    else:
        values = ", ".join(f"{name} {display.number(value)}" for name, value in reading["metrics"].items())
        display.out.print(f"trial {reading['trial']}, {reading['epochs']} epochs: {values}", soft_wrap=True)


@app.command()
def replay(
    name: Name,
    number: Annotated[int, typer.Argument(min=0, help="number of the trial")],
    store: StoreUrl = DEFAULT_STORE,
    allow: Allow = None,
    path: TaskPath = None,
    json: Json = False,
) -> None:
    """Train one trial of a study again, here and alone: same params, same seeds, same numbers."""
    _server_parts()
    try:
        from hpsearch.worker.replay import replay_trial
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[train]'") from None
    from hpsearch_storage import open_store

    opened = open_store(store)
    try:
        replayed = replay_trial(opened, name, number, allow=allow or [], folders=path or [])
    finally:
        opened.close()
    if json:
        display.show_json(replayed.document())
    else:
        display.out.print(display.replay_table(replayed.document()))
