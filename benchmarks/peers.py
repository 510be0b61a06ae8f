"""What packs are measured against that is not a plain loop: Optuna's threads and Ray Tune's actors."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks.workloads import WORKLOADS, Bench

_benches: dict[str, Bench] = {}


def optuna_rate(bench: Bench, seconds: float, jobs: int) -> float:
    """Trials per second of ``study.optimize(n_jobs=jobs)`` over the plain loop, with a random sampler in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: optuna.Trial) -> float:
        torch.set_num_threads(1)  # per thread: with more the jobs fight for the cores
        params = {"lr": trial.suggest_float("lr", 1e-5, 1e-4, log=True)}
        params["reg"] = trial.suggest_float("reg", 1e-5, 1e-3, log=True)
        return bench.plain_trial(params)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    start = time.perf_counter()
    study.optimize(objective, timeout=seconds, n_jobs=jobs)  # those begun are finished
    return len(study.trials) / (time.perf_counter() - start)


class RayTune:
    """A local Ray of one CPU per core, started once."""

    def __init__(self, cores: int) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ["PYTHONWARNINGS"] = "ignore"
        import ray  # absent without the extra ``bench``

        self.cores = cores
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        self._folder = tempfile.TemporaryDirectory(prefix="hpsearch-ray-")

    def rate(self, name: str, n_trials: int) -> float:
        """Trials per second with one CPU per trial, from when each actor has finished its first: start-up, imports
        and the loading of the data are not counted, and actors are used again.
        """
        from ray import tune

        trainable = tune.with_resources(tune.with_parameters(_ray_trial, name=name), {"cpu": 1})
        space = {"lr": tune.loguniform(1e-5, 1e-4), "reg": tune.loguniform(1e-5, 1e-3)}
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(num_samples=n_trials + self.cores, reuse_actors=True),
            run_config=tune.RunConfig(verbose=0, storage_path=self._folder.name),
        )
        with contextlib.redirect_stdout(sys.stderr):
            results = tuner.fit()
        ended = sorted(float(at) for at in results.get_dataframe()["at"])
        return n_trials / (ended[-1] - ended[self.cores - 1])

    def close(self) -> None:
        import ray

        ray.shutdown()
        self._folder.cleanup()


def _ray_trial(config: dict[str, Any], name: str) -> None:
    from ray import tune

    torch.set_num_threads(1)
    if name not in _benches:
        _benches[name] = Bench(WORKLOADS[name], "cpu")
    accuracy = _benches[name].plain_trial(config)
    tune.report({"val_accuracy": accuracy, "at": time.time()})
