"""``hpsearch init``: look at the user's data and write a study that fits them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpsearch import display
from hpsearch.cli.options import Json, train_parts
from hpsearch.errors import InvalidInput

if TYPE_CHECKING:
    from hpsearch.cli.drafting import Draft
    from hpsearch.cli.looking import Seen


def init(
    place: Annotated[
        str | None,
        typer.Argument(
            help="a CSV, Parquet or NPZ file, a folder of Parquet files, a folder with a folder of images for each "
            "class, or digits; by default the only such data in this folder",
            metavar="[PATH]",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the study to write; never one that is there")] = Path(
        "study.yaml"
    ),
    label: Annotated[str | None, typer.Option(help="column or array to predict; guessed by default")] = None,
    name: Annotated[str | None, typer.Option(help="name of the study; that of the data by default")] = None,
    json: Json = False,
) -> None:
    """Look at your data and write a commented study that fits them."""
    _check_free(output)
    train_parts()
    from hpsearch.cli.drafting import Draft, study_name
    from hpsearch.cli.looking import find_data, look
    from hpsearch.worker.supervisor import find_devices

    place = place or find_data(Path.cwd())
    packed = _packed(place)
    seen = look(packed or place, label)
    draft = Draft(name or study_name(place), seen, gpu=find_devices("auto") != ["cpu"])
    _write(draft, output, packed or place)
    if json:
        display.show_json(_document(draft, output, packed))
    else:
        _say(draft, output, place, packed)


def _check_free(output: Path) -> None:
    if output.exists():
        raise InvalidInput(f"{output} is there already and is left as it is: give --output another name")
    if not output.absolute().parent.is_dir():
        raise InvalidInput(f"{output} cannot be written: there is no folder {output.absolute().parent}")


def _packed(place: str) -> str | None:
    """Of a folder of images the Parquet file that they are copied into, in the working directory."""
    from hpsearch.cli.image_folder import images_of, write_parquet

    folder = Path(place).expanduser()
    images = images_of(folder) if folder.is_dir() else []
    if not images:
        return None
    target = Path(f"{folder.resolve().name}.parquet")
    write_parquet(folder, images, target)
    return str(target)


def _write(draft: Draft, output: Path, place: str) -> None:
    """Write the study, checked as a server will check it; never over a file."""
    from hpsearch.cli.drafting import study_text
    from hpsearch.document import parse_yaml
    from hpsearch.spec import parse_study

    text = study_text(draft, place)
    parse_study(parse_yaml(text.encode()))
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written: {error.strerror or error}") from None


def _say(draft: Draft, output: Path, place: str, packed: str | None) -> None:
    from hpsearch.cli.drafting import described, stages_in_words

    lines = [f"saw {place}: {described(draft.seen)}"]
    if packed is not None:
        lines.append(f"copied the images into {packed}, which workers read at once")
    lines += [f"mind: {note}" for note in draft.seen.notes]
    lines += [f"wrote {output}: {stages_in_words(draft)}", f"next: hpsearch run {output}"]
    display.out.print("\n".join(lines), soft_wrap=True, markup=False)


def _document(draft: Draft, output: Path, packed: str | None) -> dict[str, object]:
    seen: Seen = draft.seen
    return {
        "study": str(output),
        "name": draft.name,
        "data": seen.data,
        "packed": packed,
        "n_samples": draft.n_samples,
        "n_test": seen.n_test,
        "shape": list(seen.shape),
        "n_classes": seen.n_classes,
        "notes": list(seen.notes),
    }
