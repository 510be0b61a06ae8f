"""The documents say what there is: every key, command, option, variable and call."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from hpsearch.cli import app
from hpsearch.objective import CommandObjective, PythonObjective, TaskObjective, TrainObjective
from hpsearch.objective.data import CsvData, NpzData, ParquetData
from hpsearch.objective.models import CnnModel, LinearModel, MlpModel, ResnetModel
from hpsearch.spec import StageSpec, StudySpec

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys(inner, f"{prefix}{name}.")
        elif name not in ("data", "kind") or prefix:
            found.append(prefix + name)
    return found


def test_every_key_of_a_study_is_described() -> None:
    text = (DOCS / "study.md").read_text()
    named = [*StudySpec.model_fields, *StageSpec.model_fields, *keys(TrainObjective), *keys(TaskObjective)]
    named += [*keys(PythonObjective), *keys(CommandObjective)]
    named.remove("model")
    for model in (LinearModel, MlpModel, CnnModel, ResnetModel):
        named += [f"model.{name}" for name in model.model_fields]
    for data in (ParquetData, NpzData, CsvData):
        named += [f"data.{name}" for name in data.model_fields]
    for name in named:
        assert f"`{name}`" in text, name


def command_names() -> list[str]:
    return sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", command_names())
def test_every_command_with_its_options_and_variables_is_described(name: str) -> None:
    text = (DOCS / "commands.md").read_text()
    assert re.search(rf"hpsearch [a-z|\\]*{name}\b", text), name
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    parts = getattr(command, "commands", {})
    assert all(part in text for part in parts)
    for parameter in [*command.params, *(p for part in parts.values() for p in part.params)]:
        for option in parameter.opts:
            if option.startswith("--"):
                assert f"`{option}`" in text, (name, option)
        if parameter.envvar:
            assert f"`{parameter.envvar}`" in text, parameter.envvar


def test_every_call_is_described() -> None:
    from hpsearch.coordinator import Coordinator
    from hpsearch.testing import MemoryStore
    from hpsearch_api.app import create_app

    text = (DOCS / "http.md").read_text()
    document = create_app(Coordinator(MemoryStore())).openapi()
    calls = [f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item]
    assert len(calls) > 20
    for call in calls:
        if "/api/" in call or "z" in call.rsplit("/", 1)[-1]:
            assert f"`{call}`" in text, call


def test_every_promise_names_tests_that_are_there() -> None:
    text = (DOCS / "operations.md").read_text()
    sources = [path.read_text() for folder in ("tests", "hpsearch/testing") for path in (ROOT / folder).rglob("*.py")]
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 10
    for name in named:
        assert any(f"def {name}(" in source for source in sources), name
