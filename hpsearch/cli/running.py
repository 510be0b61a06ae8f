"""Commands that train and serve: run, serve, worker."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpsearch import display
from hpsearch.allow import check_allowed, code_options, worker_options
from hpsearch.cli import cluster
from hpsearch.cli.options import (
    DEFAULT_STORE,
    FAILED,
    Allow,
    AuthToken,
    DataRoot,
    Devices,
    Host,
    Json,
    LogFormat,
    LogLevel,
    Pack,
    Port,
    Server,
    SpecFile,
    StoreUrl,
    TaskPath,
    configure_logs,
    needs_training,
    server_parts,
)
from hpsearch.defaults import DEFAULT_SERVER
from hpsearch.errors import HpsearchError, InvalidInput, ServerError

if TYPE_CHECKING:
    from hpsearch.spec import StudySpec


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

    configure_logs("warning", "text")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    study_spec = load_study(spec)
    check_allowed(study_spec, allow or [])
    needs_training(study_spec.objective.kind)
    serving, listen = server_parts()
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
                # The study is this user's own: its data may lie wherever the user may read.
                arguments = ["--pack", pack, "--data-root", Path.cwd().anchor, *worker_options(allow, spec.parent)]
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


def serve(
    workers: Annotated[int, typer.Option(min=0, help="worker processes to run beside the server")] = 0,
    devices: Devices = "auto",
    store: StoreUrl = DEFAULT_STORE,
    host: Host = "127.0.0.1",
    port: Port = 8765,
    token: AuthToken = None,
    tls_cert: Annotated[Path | None, typer.Option(help="certificate chain, PEM: serve HTTPS")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its private key, PEM")] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="address or network whose X-Forwarded-* count; repeatable")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="what clients may ask for; repeatable", metavar="NAME=NUMBER")
    ] = None,
    pack: Pack = "auto",
    allow: Allow = None,
    data_root: DataRoot = None,
    lease_seconds: Annotated[float, typer.Option(min=1, help="how long a silent worker keeps its trials")] = 30,
    drain_seconds: Annotated[float, typer.Option(min=0, help="/readyz says no so long before the server stops")] = 0,
    log_format: LogFormat = "text",
    log_level: LogLevel = "info",
) -> None:
    """Serve the HTTP interface and the page until stopped."""
    configure_logs(log_level, log_format)
    for noisy in ("alembic", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    server_parts()
    from hpsearch.worker.supervisor import Supervisor, find_devices
    from hpsearch_api import server
    from hpsearch_api.security import Limits

    if (tls_cert is None) != (tls_key is None):
        raise InvalidInput("--tls-cert and --tls-key belong together: give both or none")
    if tls_cert is not None and workers:
        raise InvalidInput(
            "--workers speak to their server without TLS: start them with hpsearch worker --server https://…"
        )
    settings = server.Settings(
        token=token,
        limits=Limits.parse(limit or []),
        tls=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        trusted_proxies=trusted_proxy or [],
        drain_seconds=drain_seconds,
    )
    listener = server.listen(host, port)
    url = server.url_of(listener, secure=settings.tls is not None)
    root = [] if data_root is None else ["--data-root", str(data_root)]
    arguments = ["--pack", pack, *root, "--log-format", log_format, *worker_options(allow)]
    supervisor = None
    if workers:
        given = {"HPSEARCH_TOKEN": settings.worker_token}
        supervisor = Supervisor(url, workers, arguments, devices=find_devices(devices), environment=given)

    def ready() -> None:
        typer.echo(f"serving {url}  (API: {url}/docs, store: {store.split('@')[-1]})")
        if supervisor is not None:
            supervisor.start()

    try:
        server.serve(store, listener, settings, lease_seconds=lease_seconds, on_ready=ready)
    finally:
        if supervisor is not None:
            supervisor.stop()


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
    tensorboard: Annotated[str | None, typer.Option(help="folder to write trials to, for tensorboard --logdir")] = None,
    data_root: DataRoot = None,
    on: cluster.On = None,
    least: cluster.Least = None,
    most: cluster.Most = None,
    cpus: cluster.Cpus = None,
    gpus: cluster.Gpus = None,
    idle_seconds: cluster.IdleSeconds = None,
    log_format: LogFormat = "text",
    log_level: LogLevel = "warning",
) -> None:
    """Lease trials from a server and train them, until stopped; with `--on` as many as there is work for."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.pop("HPSEARCH_TOKEN", None)  # the code of tasks has no use for it
    configure_logs(log_level, log_format)
    width = _pack_width(pack)
    if on is not None:
        if device != "auto":
            raise InvalidInput(f"--device {device}: Ray gives each worker its device: leave it out, and say --gpus")
        orders = cluster.orders(
            server=server,
            token=token,
            study=study,
            pack=pack,
            width=width,
            threads=threads,
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            allow=allow,
            folders=path,
            tensorboard=tensorboard,
            data_root=data_root,
            log_level=log_level,
            log_format=log_format,
        )
        wanted: dict[str, Any] = {"least": least, "most": most, "cpus": cpus, "gpus": gpus}
        cluster.work_on_ray(on, orders, name=name, **wanted, idle_seconds=idle_seconds)
        return
    cluster.only_with_on(min=least, max=most, cpus=cpus, gpus=gpus, idle_seconds=idle_seconds)
    import platform

    from hpsearch.http import Connection
    from hpsearch.worker.loop import stop_on_signals, stop_with_parent, work
    from hpsearch.worker.runners import Equipment, runners
    from hpsearch.worker.session import Session

    stop = threading.Event()
    stop_on_signals(stop)
    if parent := os.environ.get("HPSEARCH_PARENT"):
        stop_with_parent(stop, int(parent))
    equipment = Equipment(
        device=device,
        threads=threads,
        width=width,
        checkpoints=checkpoints,
        checkpoint_seconds=checkpoint_seconds,
        allow=allow,
        folders=path or [],
        data_root=data_root or Path.cwd(),
    )
    recorder = _tensorboard(tensorboard)
    with runners(equipment) as (chosen, found):
        info = {"device": chosen, "threads": threads, "pack": pack}
        identity = name or f"{platform.node()}-{os.getpid()}"
        session = Session(Connection(server, token=token), identity, info, stop, recorder)
        work(session, found, study=study)


def _tensorboard(folder: str | None) -> Any:
    if folder is None:
        return None
    try:
        from hpsearch.worker.tensorboard import TensorBoard
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{error.name} is not installed: pip install 'hpsearch[train,tensorboard]' for --tensorboard"
        ) from None
    return TensorBoard(folder)


def _pack_width(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise InvalidInput(f"--pack {text}: give auto, or a number from 1 to 1024")
    return int(text)
