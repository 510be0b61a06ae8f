"""``hpsearch worker --on``: workers on a Ray cluster."""

from __future__ import annotations

import logging
import os
import platform
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hpsearch.errors import InvalidInput

if TYPE_CHECKING:
    from hpsearch.worker.ray.actor import Orders

IDLE_SECONDS = 60.0

On = Annotated[
    str | None,
    typer.Option(
        "--on", help="run workers as Ray actors: ray://HOST:PORT, auto (the cluster here) or local (a new one)"
    ),
]
Least = Annotated[int | None, typer.Option("--min", min=0, help="with --on: workers there always are; 1 by default")]
Most = Annotated[
    int | None, typer.Option("--max", min=1, help="with --on: workers at most; what the cluster holds by default")
]
Cpus = Annotated[float | None, typer.Option("--cpus", help="with --on: of each worker; 1 by default")]
Gpus = Annotated[float | None, typer.Option("--gpus", help="with --on: of each worker; a fraction shares one")]
IdleSeconds = Annotated[
    float | None,
    typer.Option("--idle-seconds", min=0, help="with --on: workers above --min end after so long without work"),
]


def only_with_on(**options: Any) -> None:
    """Raise InvalidInput for an option of clusters where there is none."""
    if given := [name for name, value in options.items() if value is not None]:
        raise InvalidInput(f"--{given[0].replace('_', '-')} is for workers on a Ray cluster: say which with --on")


def orders(
    *,
    folders: list[Path] | None,
    checkpoints: str | None,
    tensorboard: str | None,
    data_root: Path | None,
    log_level: str,
    allow: list[str] | None,
    **others: Any,
) -> Orders:
    """What the workers are told; paths are made those of this machine's root, for they may run in any folder."""
    told = {
        "folders": [str(folder.absolute()) for folder in folders or []],
        "home": os.getcwd(),
        "checkpoints": _absolute(checkpoints),
        "tensorboard": _absolute(tensorboard),
        "data_root": None if data_root is None else str(data_root.absolute()),
        "log_level": logging.getLevelNamesMapping()[log_level.upper()],
        "allow": allow or [],
        **others,
    }
    return cast("Orders", told)


def work_on_ray(
    address: str,
    orders: Orders,
    *,
    name: str | None,
    least: int | None,
    most: int | None,
    cpus: float | None,
    gpus: float | None,
    idle_seconds: float | None,
) -> None:
    """Keep workers on a cluster until a signal. Raises InvalidInput, ClusterUnreachable, ServerRefused."""
    try:
        from hpsearch.worker.ray.cluster import Share, connected
        from hpsearch.worker.ray.fleet import Fleet, Range
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[ray]' for --on") from None
    from hpsearch.worker.loop import stop_on_signals

    share = Share(1.0 if cpus is None else cpus, gpus or 0.0)
    limits = Range(1 if least is None else least, most)
    orders["threads"] = max(orders["threads"], int(share.cpus))
    stop = threading.Event()
    with connected(address):
        stop_on_signals(stop)  # now, for Ray has handlers of its own
        fleet = Fleet(
            orders,
            name or f"{platform.node()}-{os.getpid()}",
            limits=limits,
            share=share,
            idle_seconds=IDLE_SECONDS if idle_seconds is None else idle_seconds,
            say=typer.echo,
        )
        fleet.run(stop)


def _absolute(place: str | None) -> str | None:
    return place if place is None or "://" in place else str(Path(place).absolute())
