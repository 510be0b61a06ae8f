"""One trial trained again, alone, beside what it reported the first time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpsearch.errors import InvalidInput
from hpsearch.http import encode
from hpsearch.objective import TrainObjective
from hpsearch.search.sampling import data_seed, training_seed
from hpsearch.space import Params
from hpsearch.store import Store
from hpsearch.training import Member, Pack, load_dataset


@dataclass(frozen=True, slots=True)
class Replayed:
    """A trial's metrics per epoch, as recorded (None where there is no record) and as trained again."""

    params: Params
    epochs: list[tuple[int, dict[str, float] | None, dict[str, float]]]

    def document(self) -> dict[str, Any]:
        """As JSON-ready values."""
        steps = [
            {
                "step": epoch,
                "recorded": recorded and {name: encode(value) for name, value in recorded.items()},
                "replayed": {name: encode(value) for name, value in replayed.items()},
            }
            for epoch, recorded, replayed in self.epochs
        ]
        return {"params": self.params, "steps": steps}


def replay_trial(store: Store, name: str, number: int) -> Replayed:
    """Train a trial again from what the store knows of it.

    Raises:
        NotFound: no such study or trial.
        InvalidInput: the study's objective is not trained by us.
        DataError: its data cannot be used.
    """
    study = store.study(name)
    trial = store.trial(study.id, number)
    objective = study.spec.objective
    if not isinstance(objective, TrainObjective):
        raise InvalidInput(f"{name} is of kind {objective.kind}: only kind train can be trained again here")
    stage = next(stage for stage in store.stages(study.id) if stage.name == trial.stage)
    recorded = {metrics.step: metrics.values for metrics in store.metrics(study.id, [number])}
    member = Member(objective.with_params(trial.params), training_seed(study.spec.seed, stage.index, number))
    pack = Pack(
        [member],
        load_dataset(member.objective, study_seed=study.spec.seed),
        data_seed=data_seed(study.spec.seed, stage.index),
        epochs=stage.spec.n_epochs,
    )
    epochs = []
    for epoch in range(1, stage.spec.n_epochs + 1):
        result = pack.train_epoch()[0]
        epochs.append((epoch, recorded.get(epoch), result.metrics))
        if result.diverged is not None:
            break
    return Replayed(trial.params, epochs)
