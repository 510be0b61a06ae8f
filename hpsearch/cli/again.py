"""Commands that train a trial again: test, replay."""

from __future__ import annotations

from typing import Annotated

import typer

from hpsearch import display
from hpsearch.cli.options import DEFAULT_STORE, Allow, Json, Name, StoreUrl, TaskPath, server_parts
from hpsearch.errors import InvalidInput


def read_test(name: Name, store: StoreUrl = DEFAULT_STORE, json: Json = False) -> None:
    """Read the test split, once, for the winner of a completed study; the reading is logged."""
    server_parts()
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


def replay(
    name: Name,
    number: Annotated[int, typer.Argument(min=0, help="number of the trial")],
    store: StoreUrl = DEFAULT_STORE,
    allow: Allow = None,
    path: TaskPath = None,
    json: Json = False,
) -> None:
    """Train one trial of a study again, here and alone: same params, same seeds, same numbers."""
    server_parts()
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
