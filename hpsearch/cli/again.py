"""Commands that train a trial again: test, replay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import ModuleType
from typing import Annotated, Any

import typer

from hpsearch import display
from hpsearch.cli.options import DEFAULT_STORE, Allow, Json, Name, StoreUrl, TaskPath, server_parts
from hpsearch.errors import InvalidInput


def read_test(name: Name, store: StoreUrl = DEFAULT_STORE, json: Json = False) -> None:
    """Read the test split, once, for the winner of a completed study; the reading is logged."""
    with _training_on(store) as (replaying, opened):
        reading = replaying.read_test_split(opened, name)
    if json:
        display.show_json(reading)
    else:
        values = ", ".join(f"{name} {display.number(value)}" for name, value in reading["metrics"].items())
        display.out.print(f"trial {reading['trial']}, {reading['epochs']} epochs: {values}", soft_wrap=True)


def replay(
    name: Name,
    number: Annotated[int, typer.Argument(min=0, help="number of the trial")],
    store: StoreUrl = DEFAULT_STORE,
    allow: Allow = None,
    path: TaskPath = None,
    json: Json = False,
) -> None:
    """Train one trial of a study again, here and alone: same params, same seeds, same numbers."""
    with _training_on(store) as (replaying, opened):
        replayed = replaying.replay_trial(opened, name, number, allow=allow or [], folders=path or [])
    if json:
        display.show_json(replayed.document())
    else:
        display.out.print(display.replay_table(replayed.document()))


@contextmanager
def _training_on(store: str) -> Iterator[tuple[ModuleType, Any]]:
    """What trains again, and the store that it reads; both are heavy, and extras."""
    server_parts()
    try:
        from hpsearch.worker import replay as replaying
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'hpsearch[train]'") from None
    from hpsearch_storage import open_store

    with closing(open_store(store)) as opened:
        yield replaying, opened
