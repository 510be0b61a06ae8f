"""Distributions that Optuna used, and the space of a study that is their union: the one space that grows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, insert, select, update

from hpsearch.errors import InvalidInput
from hpsearch.space import CategoricalParam, Choice, FloatParam, IntParam, Param, Space, Value
from hpsearch_storage import stages, studies, tables
from hpsearch_storage.codec import chunks, encode_space, encode_study

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_NAME = 512
"""Characters of a name, as in Optuna's own databases."""
_distributions = tables.optuna_distributions.c
_PARAM: TypeAdapter[Param] = TypeAdapter(Param)


def check_name(name: str) -> str:
    """The name itself. Raises InvalidInput if it is too long for an index."""
    if len(name) > MAX_NAME:
        raise InvalidInput(f"the name {name[:40]!r}… has {len(name)} characters: at most {MAX_NAME}")
    return name


@lru_cache(maxsize=10_000)
def parse(text: str) -> BaseDistribution:
    """The distribution of a text. Raises InvalidInput."""
    from optuna.distributions import json_to_distribution  # heavy: only Optuna's trials need it

    try:
        return json_to_distribution(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(f"{text[:80]!r} is no distribution of Optuna: {error}") from None


Interned = MutableMapping[tuple[int, str, str], int]
"""Study, name and text → id of distributions that are noted already, to spare asking the database."""


def intern(
    connection: Connection, study_id: int, used: Sequence[tuple[str, str]], interned: Interned
) -> tuple[dict[tuple[str, str], int], list[tuple[str, str]], dict[str, str]]:
    """Ids of the distributions that params (each by name and text) were drawn from; new ones are noted.

    The study is locked.

    Returns:
        name and text → id, those that are new, and for each name whose distribution does not fit the first one of
        that name, why.
    """
    found = {pair: interned[study_id, *pair] for pair in used if (study_id, *pair) in interned}
    digests = {_digest(check_name(name), text): (name, text) for name, text in used if (name, text) not in found}
    for some in chunks(sorted(digests)):
        query = select(_distributions.id, _distributions.digest)
        query = query.where(_distributions.study_id == study_id, _distributions.digest.in_(some))
        for row in connection.execute(query):
            found[digests[row.digest]] = row.id
    new: list[tuple[str, str]] = []
    unfit: dict[str, str] = {}
    for digest, (name, text) in digests.items():
        if (name, text) in found:
            continue
        if why := _why_unfit(connection, study_id, name, text):
            unfit[name] = why
            continue
        given = {"study_id": study_id, "name": name, "distribution": text, "digest": digest}
        made = insert(tables.optuna_distributions).values(given).returning(_distributions.id)
        found[name, text] = connection.execute(made).scalar_one()
        new.append((name, text))
    interned.update({(study_id, *pair): key for pair, key in found.items() if (study_id, *pair) not in interned})
    return found, new, unfit


def _digest(name: str, text: str) -> str:
    return hashlib.blake2b(f"{name}\0{text}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _why_unfit(connection: Connection, study_id: int, name: str, text: str) -> str | None:
    from optuna.distributions import check_distribution_compatibility  # heavy: only Optuna's trials need it

    query = select(_distributions.distribution)
    query = query.where(_distributions.study_id == study_id, _distributions.name == name)
    first = connection.execute(query.order_by(_distributions.id).limit(1)).scalar()
    if first is None:
        return None
    try:
        check_distribution_compatibility(parse(first), parse(text))
    except ValueError as error:
        return f"the parameter {name!r}: {error}"
    return None


def grow(connection: Connection, stage_id: int, used: Sequence[tuple[str, str]]) -> None:
    """Widen the space of an open-ended stage to hold these distributions, and that of its study's document.

    The study is locked.
    """
    stage = stages.one(connection, stage_id)
    if stage is None or not stage.spec.open_ended:
        return
    space = dict(stage.space)
    for name, text in used:
        if (param := _widened(connection, stage.study_id, name, space.get(name), text)) is not None:
            space[name] = param
    try:
        spec = studies.document(connection, stage.study_id)
        spec = type(spec).model_validate({**spec.model_dump(), "space": {n: p.model_dump() for n, p in space.items()}})
    except ValidationError:
        return  # more than a document holds: trials keep what they have
    if space == stage.space:
        return
    where = tables.studies.c.id == stage.study_id
    connection.execute(update(tables.studies).where(where).values(spec=encode_study(spec)))
    where = tables.stages.c.id == stage.id
    connection.execute(update(tables.stages).where(where).values(space=encode_space(space)))


def _widened(connection: Connection, study_id: int, name: str, before: Param | None, text: str) -> Param | None:
    """The union of what a space has and a distribution; None where our documents have no words for it."""
    texts = [text]
    if before is None:  # single values are no range; two of them are
        query = select(_distributions.distribution)
        query = query.where(_distributions.study_id == study_id, _distributions.name == name)
        texts = [*connection.scalars(query.limit(100)), text]
    union = None if before is None else before.model_dump(exclude_none=True)
    for each in texts:
        union = _united(union, _words(parse(each)))
    try:
        return _PARAM.validate_python(union)
    except ValidationError:
        return None


def _words(distribution: BaseDistribution) -> dict[str, Any]:
    given = distribution._asdict()
    if "choices" in given:
        return {"type": "categorical", "choices": list(given["choices"])}
    kind = "float" if type(distribution).__name__ == "FloatDistribution" else "int"
    return {"type": kind, **{key: value for key, value in given.items() if value is not None}}


def _united(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    if one is None or "choices" in one or "choices" in other or one["type"] != other["type"]:
        return other if one is None else one
    union = {**one, "low": min(one["low"], other["low"]), "high": max(one["high"], other["high"])}
    if one.get("step") != other.get("step"):
        union.pop("step", None)
    return union


def text_of(param: Param) -> str:
    """A parameter of ours as Optuna's text; a list as a choice becomes its JSON text."""
    from optuna.distributions import CategoricalDistribution, distribution_to_json  # heavy: only Optuna needs it

    if isinstance(param, CategoricalParam):
        return distribution_to_json(CategoricalDistribution([_choice(choice) for choice in param.choices]))
    return distribution_to_json(param.distribution)


def _choice(choice: Choice) -> bool | int | float | str | None:
    return json.dumps(choice) if isinstance(choice, list) else choice


def internal_params(space: Space, params: Mapping[str, Value]) -> list[tuple[str, float]]:
    """Params of ours by name, with Optuna's internal values; those that their space does not hold are left out."""
    found = []
    for name, value in params.items():
        param = space.get(name)
        if param is None or not param.contains(value):
            continue
        if isinstance(param, FloatParam | IntParam):
            assert isinstance(value, int | float)
            found.append((name, float(value)))
        else:
            found.append((name, float(param.index(value))))
    return found
