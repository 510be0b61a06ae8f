"""Commands that read and steer studies over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hpsearch import display
from hpsearch.cli.database import export_study
from hpsearch.cli.options import (
    DEFAULT_STORE,
    AuthToken,
    Json,
    Name,
    Server,
    SpecFile,
    StoreUrl,
    connected,
    study_names,
)
from hpsearch.defaults import DEFAULT_SERVER
from hpsearch.errors import InvalidInput


def submit(spec: SpecFile, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """Submit a study to a server and return at once."""
    with connected(server, token) as client:
        study = client.submit(spec)
        if json:
            display.show_json(study.read())
        else:
            display.out.print(f"submitted: {client.server}/studies/{study.name}", soft_wrap=True)


def status(
    name: Annotated[
        str | None, typer.Argument(help="name of a study; all by default", autocompletion=study_names)
    ] = None,
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
    json: Json = False,
) -> None:
    """How the studies stand, or one of them with its stages."""
    with connected(server, token) as client:
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


def best(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """The winner so far."""
    with connected(server, token) as client:
        document = client.study(name).read()
    if json:
        display.show_json(document["best"])
    else:
        display.out.print("\n".join(display.best_lines(document)))


def flags(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """Borders at which the best trials lie, with p-values."""
    with connected(server, token) as client:
        document = client.study(name).read()
    if json:
        display.show_json(document["flags"])
    else:
        display.out.print("\n".join(display.flag_lines(document["flags"])), soft_wrap=True)


def acknowledge(
    name: Name,
    parameter: Annotated[str, typer.Argument(help="the flag's parameter")],
    side: Annotated[str, typer.Argument(help="low or high")],
    stage: Annotated[str | None, typer.Option(help="the flag's stage; the latest with this flag by default")] = None,
    note: Annotated[str, typer.Option(help="why it is fine")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="take it back")] = False,
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
    json: Json = False,
) -> None:
    """Note that a flag has been seen: nothing is proposed for it any more."""
    if side not in ("low", "high"):
        raise InvalidInput(f"side {side}: give low or high")
    with connected(server, token) as client:
        study = client.study(name)
        if stage is None:
            mine = [f["stage"] for f in study.flags if (f["parameter"], f["side"]) == (parameter, side)]
            if not mine:
                raise InvalidInput(f"the study {name} has no flag at the {side} border of {parameter}")
            stage = mine[0]
        flags = study.acknowledge(stage, parameter, side, note=None if undo else note)
    if json:
        display.show_json(flags)
    else:
        display.out.print("\n".join(display.flag_lines(flags)), soft_wrap=True)


def stages(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """The stages of a study, and those that are proposed."""
    with connected(server, token) as client:
        study = client.study(name)
        document, proposals = study.read(), study.proposals
    if json:
        display.show_json({"items": document["stages"], "proposals": proposals})
    else:
        display.out.print(display.stage_table(document))
        display.out.print("\n".join(display.proposal_lines(name, proposals)), soft_wrap=True)


def analysis(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """How ranges were narrowed and why, whether short training tells what long will, how sure the winner is."""
    with connected(server, token) as client:
        document = client.study(name).analysis
    if json:
        display.show_json(document)
    else:
        display.out.print("\n".join(display.analysis_lines(document)), soft_wrap=True)


def open_stage(
    name: Name,
    proposal: Annotated[str | None, typer.Argument(help="name of a proposed stage; the only one by default")] = None,
    trials: Annotated[int | None, typer.Option(help="another number of trials")] = None,
    epochs: Annotated[int | None, typer.Option(help="another number of epochs")] = None,
    ends: Annotated[
        list[str] | None, typer.Option("--set", help="another end of a range; repeatable", metavar="NAME.low=VALUE")
    ] = None,
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
    json: Json = False,
) -> None:
    """Open a proposed stage, as it is or with changes; what runs now ends, a completed study runs again."""
    changes = {"trials": trials, "epochs": epochs, "space": _ends(ends or []) or None}
    given = {key: value for key, value in changes.items() if value is not None}
    with connected(server, token) as client:
        study = client.study(name)
        if proposal is None and given and len(study.proposals) == 1:
            proposal = study.proposals[0]["name"]
        stage = study.open_stage(proposal, **given)
    if json:
        display.show_json(stage)
    else:
        display.out.print(f"{stage['name']} is open: {stage['n_trials']} trials of {stage['epochs']} epochs")


def _ends(texts: list[str]) -> dict[str, dict[str, float]]:
    changes: dict[str, dict[str, float]] = {}
    for text in texts:
        place, _, value = text.partition("=")
        parameter, _, end = place.rpartition(".")
        try:
            number = float(value)
        except ValueError:
            number = None
        if end not in ("low", "high") or not parameter or number is None:
            raise InvalidInput(f"--set {text}: give NAME.low=VALUE or NAME.high=VALUE, such as lr.high=0.1")
        changes.setdefault(parameter, {})[end] = int(number) if number.is_integer() else number
    return changes


def export(
    name: Name,
    form: Annotated[str, typer.Option("--format", help="csv, json, parquet or study")] = "csv",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a file; standard output by default")] = None,
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Every trial of a study as a file; or, with --format study, straight from the store all that belongs to it."""
    if form == "study":
        export_study(store, name, output)
        return
    if form not in ("csv", "json", "parquet"):
        raise InvalidInput(f"--format {form}: give csv, json, parquet or study")
    with connected(server, token) as client:
        data = client.study(name).export(form)
    if output is None:
        sys.stdout.buffer.write(data)
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written: {error.strerror}") from None


def pause(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """Hand out no more trials of a study; running ones go on."""
    _steer(server, token, name, "pause", json=json)


def resume(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """Hand out trials of a paused study again."""
    _steer(server, token, name, "resume", json=json)


def cancel(name: Name, server: Server = DEFAULT_SERVER, token: AuthToken = None, json: Json = False) -> None:
    """End a study now; what has finished stays."""
    _steer(server, token, name, "cancel", json=json)


def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    server: Server = DEFAULT_SERVER,
    token: AuthToken = None,
    json: Json = False,
) -> None:
    """Remove a study and all that belongs to it; there is no way back."""
    if not yes and not typer.confirm(f"remove {name} and all of its trials? (hpsearch export keeps a copy)"):
        raise typer.Exit(0)
    _steer(server, token, name, "delete", json=json)


def _steer(server: str, token: str | None, name: str, action: str, *, json: bool) -> None:
    with connected(server, token) as client:
        study = client.study(name)
        getattr(study, action)()
        if json:
            display.show_json({"name": name, "state": None if action == "delete" else study.state})
            return
    done = {"pause": "paused", "resume": "running again", "cancel": "cancelled", "delete": "removed"}[action]
    display.out.print(f"{name} is {done}", markup=False)
