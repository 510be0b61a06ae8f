"""Commands for whoever keeps the store: upgrade, check, backup, restore, thin; and importing a study."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from hpsearch import display
from hpsearch.cli.examples import epilog
from hpsearch.cli.options import DEFAULT_STORE, FAILED, Json, StoreUrl, server_parts
from hpsearch.errors import InvalidInput

app = typer.Typer(help="Care for the store: its schema, its consistency, its backups.", no_args_is_help=True)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@app.command(epilog=epilog("db upgrade"))
def upgrade(store: StoreUrl = DEFAULT_STORE, json: Json = False) -> None:
    """Bring the schema up to date; a server does so, too, when it opens the store."""
    server_parts()
    from hpsearch_storage import maintenance

    before, after = maintenance.upgrade(store)
    if json:
        display.show_json({"before": before, "schema": after})
        return
    what = "is up to date" if before == after else f"was {before or 'empty'}"
    display.out.print(f"schema {after}: it {what}", soft_wrap=True)


@app.command(epilog=epilog("db check"))
def check(store: StoreUrl = DEFAULT_STORE, json: Json = False) -> None:
    """Look for damage: the file, the schema, and whether counters, leases and logs agree. Changes nothing."""
    server_parts()
    from hpsearch_storage import maintenance

    found = maintenance.check(store)
    if json:
        display.show_json({"schema": found.version, "newest": found.newest, "faults": list(found.faults)})
    else:
        display.out.print("\n".join(found.faults) or f"schema {found.version}: no fault found", markup=False)
        if not found.faults and found.version != found.newest:
            display.out.print(f"this hpsearch brings it to {found.newest}: hpsearch db upgrade, then check again")
    if found.faults:
        raise typer.Exit(FAILED)


@app.command(epilog=epilog("db backup"))
def backup(
    file: Annotated[Path, typer.Argument(help="a new file", metavar="FILE")],
    store: StoreUrl = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Copy the store to a file, while servers go on. SQLite; PostgreSQL has pg_dump."""
    server_parts()
    from hpsearch_storage import backups

    size = backups.backup(store, file)
    if json:
        display.show_json({"file": str(file), "bytes": size})
        return
    display.out.print(f"{file}: {size:,} bytes", soft_wrap=True, markup=False)


@app.command(epilog=epilog("db restore"))
def restore(
    file: Annotated[Path, typer.Argument(help="what hpsearch db backup made", metavar="FILE")],
    store: StoreUrl = DEFAULT_STORE,
    replace: Annotated[bool, typer.Option("--replace", help="the store that is there may go")] = False,
) -> None:
    """Put a backup in the place of a store that no server uses."""
    server_parts()
    from hpsearch_storage import backups

    backups.restore(file, store, replace=replace)
    display.out.print(f"{store.split('@')[-1]} is as {file} was", soft_wrap=True, markup=False)


@app.command(epilog=epilog("db thin"))
def thin(
    older_than: Annotated[str, typer.Option(help="since the study ended, such as 30d or 12h")],
    keep_every: Annotated[int, typer.Option(help="of the steps between the first and the last, every so many-th")],
    study: Annotated[str | None, typer.Option(help="only this one")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count, and remove nothing")] = False,
    store: StoreUrl = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Remove metrics between the first and the last step of trials whose study ended long ago; each log tells of it."""
    server_parts()
    from hpsearch_storage import maintenance

    done = maintenance.thin(
        store,
        older_than=duration(older_than),
        keep_every=keep_every,
        study=study,
        now=datetime.now(UTC),
        dry_run=dry_run,
    )
    if json:
        display.show_json([{"study": each.study, "n_removed": each.n_removed} for each in done])
        return
    verb = "would go" if dry_run else "removed"
    lines = [f"{each.study}: {each.n_removed:,} steps {verb}" for each in done]
    display.out.print("\n".join(lines) or "nothing to thin", soft_wrap=True, markup=False)


def import_study(
    source: Annotated[
        str,
        typer.Argument(
            help="what hpsearch export --format study wrote, or the URL of an Optuna storage", metavar="FILE"
        ),
    ],
    name: Annotated[str | None, typer.Option(help="another name for the study")] = None,
    study: Annotated[str | None, typer.Option(help="of an Optuna storage: which; the only one by default")] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="of an Optuna storage: a study that its trials are a warm start of", metavar="SPEC"),
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
    json: Json = False,
) -> None:
    """Add the study of a file, or of an Optuna storage, to the store; a server may go on meanwhile."""
    server_parts()
    if "://" in source:
        _import_optuna(source, study, into, name=name, store=store, json=json)
        return
    if study is not None or into is not None:
        raise InvalidInput("--study and --into belong to the URL of an Optuna storage, and this is a file")
    from hpsearch_storage import maintenance

    made = maintenance.import_study(store, Path(source), name=name, now=datetime.now(UTC))
    if json:
        display.show_json({"name": made.name, "n_trials": made.n_trials, "state": made.state})
    else:
        display.out.print(f"{made.name}: {made.n_trials:,} trials, {made.state}", soft_wrap=True, markup=False)


def _import_optuna(url: str, study: str | None, into: Path | None, *, name: str | None, store: str, json: bool) -> None:
    """Copy a study of Optuna's with all that it keeps, or take its trials as the warm start of one of ours."""
    try:
        import optuna

        from hpsearch.integrations.optuna.history import load_optuna_study
        from hpsearch_storage.optuna import StoreStorage
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[optuna]'") from None
    found = load_optuna_study(url, study)
    if into is not None:
        if name is not None:
            raise InvalidInput("--name: the study of --into has its own")
        _warm_start(found, into, store=store, json=json)
        return
    made = name or found.study_name
    target = StoreStorage(store)
    try:
        optuna.copy_study(from_study_name=found.study_name, from_storage=url, to_storage=target, to_study_name=made)
    except optuna.exceptions.DuplicatedStudyError:
        raise InvalidInput(f"there is a study {made!r} already: give --name another") from None
    finally:
        target.close()
    _show_imported(made, len(found.get_trials(deepcopy=False)), {}, json=json)


def _warm_start(found: Any, into: Path, *, store: str, json: bool) -> None:
    from hpsearch.coordinator import Coordinator
    from hpsearch.integrations.optuna.history import history
    from hpsearch.spec import load_study
    from hpsearch_storage import open_store

    spec = load_study(into)
    past = history(found, spec)
    opened = open_store(store)
    try:
        coordinator = Coordinator(opened)
        made, created = coordinator.submit(spec)
        if not created and made.next_number:
            raise InvalidInput(f"the study {spec.name!r} has trials already: a warm start comes before them")
        for start in range(0, len(past.trials), 1000):
            coordinator.add_finished(spec.name, past.trials[start : start + 1000])
    finally:
        opened.close()
    _show_imported(spec.name, len(past.trials), past.left_out, json=json)


def _show_imported(name: str, n_trials: int, left_out: Mapping[str, int], *, json: bool) -> None:
    if json:
        display.show_json({"name": name, "n_trials": n_trials, "left_out": dict(left_out)})
        return
    lines = [f"{name}: {n_trials:,} trials", *(f"left out {n:,}: {why}" for why, n in left_out.items())]
    display.out.print("\n".join(lines), soft_wrap=True, markup=False)


def export_study(store: str, name: str, output: Path | None) -> Any:
    """Write a whole study to a file: ``hpsearch export --format study``."""
    server_parts()
    from hpsearch_storage import maintenance

    if output is None:
        raise InvalidInput("--format study needs a file: give --output")
    n = maintenance.export_study(store, name, output, now=datetime.now(UTC))
    display.err.print(f"{output}: {n:,} trials", soft_wrap=True, markup=False)


def duration(text: str) -> timedelta:
    """A time such as ``30d``, ``12h`` or ``90s``. Raises InvalidInput."""
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if found is None:
        raise InvalidInput(f"{text!r} is no duration: give a number and s, m, h, d or w, such as 30d")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])
