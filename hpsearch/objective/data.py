"""Where samples come from: ``objective.data``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpsearch.document import Document, StorableText, Text

Validation = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
"""Size of the validation split: a count of samples, or a share of all."""


class _Data(Document):
    validation: Validation = 0.2
    train: Annotated[int, Field(ge=1)] | None = None
    """At most so many training samples, drawn at random; all by default."""
    test: Validation | None = None
    """Samples set apart before anything else and read once, for the winner; by default those of files named ``test*``
    beside a Parquet training set, else none."""


class DigitsData(_Data):
    """scikit-learn's 1,797 images of handwritten digits, 8 × 8, values 0 to 16, ten classes. Embedded."""

    source: Literal["digits"]


class ParquetData(_Data):
    """A Parquet file, or a folder of them as Hugging Face datasets have it (files named ``train*`` if there are any).

    ``image`` names a column of encoded images (a struct with ``bytes``, or binary; found by its type where not
    given); otherwise ``columns`` (all numeric ones by default) are the features.
    """

    source: Literal["parquet"]
    path: StorableText
    label: Text = "label"
    image: Text | None = None
    columns: list[Text] | None = None


class NpzData(_Data):
    """A NumPy archive with an array of samples ``x`` (n × …) and one of labels ``y`` (n, whole numbers from 0)."""

    source: Literal["npz"]
    path: StorableText
    x: Text = "x"
    y: Text = "y"


class CsvData(_Data):
    """A CSV file with a header; every column but ``label`` is a numeric feature."""

    source: Literal["csv"]
    path: StorableText
    label: Text = "label"


Data = Annotated[DigitsData | ParquetData | NpzData | CsvData, Field(discriminator="source")]
