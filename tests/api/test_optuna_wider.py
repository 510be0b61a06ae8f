"""Optuna's own tests of samplers and of importance, with our storage where they would take one in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
import pytest
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, TPESampler
from optuna.testing.pytest_importance import BasicImportanceEvaluatorTestCase
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from hpsearch.integrations.optuna import ServiceStorage

pytestmark = pytest.mark.filterwarnings("ignore")
Samplers = Callable[[], BaseSampler]


@pytest.fixture(autouse=True)
def ours(storage: ServiceStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names no storage takes ours."""
    theirs = optuna.storages.get_storage
    monkeypatch.setattr(optuna.storages, "get_storage", lambda given: storage if given is None else theirs(given))
    assert optuna.create_study()._storage is storage


class TestIndependent(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture(params=[TPESampler, NSGAIISampler])
    def sampler(self, request: pytest.FixtureRequest) -> Samplers:
        made: Samplers = request.param
        return made


class TestRelative(RelativeSamplerTestCase):
    @pytest.fixture(params=["tpe", "cmaes"])
    def sampler(self, request: pytest.FixtureRequest) -> Any:
        return {
            "tpe": lambda: TPESampler(n_startup_trials=0, multivariate=True),
            "cmaes": lambda: CmaEsSampler(n_startup_trials=0),
        }[request.param]


class TestImportance(BasicImportanceEvaluatorTestCase):
    @pytest.fixture(params=["fanova", "ped-anova"])
    def evaluator(self, request: pytest.FixtureRequest) -> Any:
        return {
            "fanova": partial(FanovaImportanceEvaluator, seed=0),
            "ped-anova": PedAnovaImportanceEvaluator,
        }[request.param]
