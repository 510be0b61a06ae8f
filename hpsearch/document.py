"""Documents from outside: strict pydantic models whose errors name the key, the value and the rule."""

from __future__ import annotations

import difflib
from functools import cache
from typing import Annotated, Any, NoReturn

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hpsearch.errors import Fault, InvalidSpec

MAX_NODES = 100_000
"""A document with more keys and values than this (aliases counted each time) is refused."""


def is_storable(text: str) -> bool:
    """Whether every store can hold a text: no database keeps a NUL, or half of a surrogate pair."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


def _storable(text: str) -> str:
    if not is_storable(text):
        raise PydanticCustomError("text", "the text holds a NUL or half of a surrogate pair, which no database keeps")
    return text


STORABLE = AfterValidator(_storable)
"""Of a text; it comes after the text's length, which pydantic then looks at without calling Python."""
StorableText = Annotated[str, STORABLE]
Text = Annotated[str, Field(min_length=1, max_length=200), STORABLE]
"""A name or a short text that every store can hold."""


class Document(BaseModel):
    """Base of what users write: immutable, finite, and an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", hide_input_in_errors=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = _keys(cls)
            for key in data:
                if key not in known:
                    raise PydanticCustomError(
                        "unknown_key", "{hint}", {"key": str(key), "hint": unknown(str(key), list(known), what="key")}
                    )
        return data


@cache
def _keys(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(sorted(f.alias or name for name, f in model.model_fields.items()))


def unknown(given: str, known: list[str], *, what: str) -> str:
    """A sentence that names an unknown word, the nearest known one, and all of them."""
    nearest = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown {what} {given!r}{hint} Known: {', '.join(known)}"


def faults_of(error: ValidationError, document: Any) -> list[Fault]:
    """Pydantic's errors as faults: paths follow the document (no union tags), texts say the value and the rule."""
    faults = []
    for item in error.errors(include_url=False):
        path = _path(item["loc"], document, missing=item["type"] == "missing")
        msg = item["msg"]
        context = item.get("ctx", {})
        if item["type"] == "unknown_key":
            path.append(context["key"])
        elif item["type"] == "missing":
            msg = "this key is missing"
        elif item["type"] == "union_tag_invalid":
            tag = str(context["discriminator"]).strip("'")
            known = [t.strip(" '") for t in str(context["expected_tags"]).split(",")]
            path.append(tag)
            msg = unknown(str(context["tag"]), known, what=tag)
        elif item["type"] == "union_tag_not_found":
            path.append(str(context["discriminator"]).strip("'"))
            msg = "this key is missing"
        elif item["type"] == "literal_error" and isinstance(item["input"], str):
            known = [t.strip(" '") for t in str(context["expected"]).replace(" or ", ",").split(",")]
            msg = unknown(item["input"], known, what="word")
        elif "text" in context:
            path += [context["loc"]] if context.get("loc") else []
        elif not isinstance(item["input"], dict | list):
            msg = f"{msg[0].lower()}{msg[1:]}, but is {_short(item['input'])}"
        faults.append(Fault(".".join(path), msg))
    return faults


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _path(loc: tuple[int | str, ...], document: Any, *, missing: bool) -> list[str]:
    """The parts of a pydantic location that are keys of the document; a missing key is the last part."""
    path: list[str] = []
    node = document
    for i, part in enumerate(loc):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif not (missing and i == len(loc) - 1):
            continue  # the tag of a union, or a name that pydantic gave a validator
        path.append(str(part))
    return path


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML (or JSON, which is YAML) safely.

    Aliases count each time they are used, so a document that unfolds without end is refused.

    Raises:
        InvalidSpec: not YAML, or more than :data:`MAX_NODES` keys and values.
    """
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        _refuse(f"this is not YAML{at}: {error.problem or error.context}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        _refuse(f"this is not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    check_size(document)
    return document


def check_size(document: Any) -> None:
    """Raise InvalidSpec for a document of more than :data:`MAX_NODES` nodes, too deep, or with half a character."""
    stack, nodes = [(document, 0)], 0
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if nodes > MAX_NODES or depth > 50:
            _refuse(f"the document is too large: at most {MAX_NODES} keys and values, nested at most 50 deep")
        if isinstance(node, dict):
            stack += [(child, depth + 1) for child in (*node.keys(), *node.values())]
        elif isinstance(node, list):
            stack += [(child, depth + 1) for child in node]
        elif isinstance(node, str) and any("\ud800" <= c <= "\udfff" for c in node):
            _refuse(f"the text {node[:40]!a} holds half of a surrogate pair, which is no character")


def _refuse(text: str) -> NoReturn:
    raise InvalidSpec([Fault("", text)])


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-6 as a number, as JSON and YAML 1.2 do, and refuses a key that stands twice."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Text; two escapes of JSON that are the halves of one surrogate pair become its character."""
        text = super().construct_scalar(node)
        if isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text):
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _read_yaml_1_2_floats() -> None:
    import re

    _Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


_read_yaml_1_2_floats()
