"""Diagnostics of an epoch, against numbers worked out by hand."""

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch

from hpsearch.objective import TrainObjective
from hpsearch.training import Member, Pack, load_dataset
from hpsearch.training.diagnostics import BINS, MAX_LAYERS, SAMPLES, diagnostics, middle, start_histograms
from hpsearch.training.losses import build_loss
from hpsearch.training.models import build_model
from hpsearch.training.optimisers import build_optimiser


def objective(**keys: Any) -> TrainObjective:
    return TrainObjective.model_validate({"kind": "train", "data": {"source": "digits"}, **keys})


def test_the_middle_in_logarithms() -> None:
    assert middle(torch.tensor([[1e-4, 3.0], [1e-2, 3.0]])).tolist() == pytest.approx([1e-3, 3.0])
    assert middle(torch.tensor([[1e-4], [7.0], [1e-2]])).tolist() == pytest.approx([1e-2])


def trained_once() -> list[dict[str, float]]:
    """Two members of one hidden unit pair, one plain step each, with weights set by hand.

    Inputs (1, 0) of class 0, scores 0 for both classes: p = (½, ½), gradient of the scores (−½, ½).
    Hidden weights: unit 0 reads x₀ with weight 1 and fires; unit 1 with −1 and is dead. Output weights of unit 0 would
    move the scores, so only unit 1 has some: all scores are 0, and only the outputs of unit 0 get a gradient.
    """
    model_keys = {"kind": "mlp", "hidden": [2]}
    objectives = [objective(model=model_keys, optimizer={"lr": lr, "momentum": 0.0}) for lr in (0.1, 0.2)]
    model = build_model(objectives, input_shape=(2,), n_outputs=2, input_rms=1.0, seeds=[0, 1], device="cpu")
    first, last = (p for p in model.parameters if p.penalised)
    first.value[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    last.value[:] = torch.tensor([[0.0, 0.6], [0.0, 0.8]])
    optimiser = build_optimiser(objectives, model.parameters, epochs=1, steps_per_epoch=1, device="cpu")
    inputs = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    scores, labels = model.forward(inputs, training=True), torch.zeros(4, dtype=torch.int64)
    scored = build_loss(objectives, "cpu").score(scores, labels)
    optimiser.set_step(0)
    optimiser.begin(measure=True)
    model.backward(scored.gradient.mul_(optimiser.scale / 4))
    optimiser.apply()
    return diagnostics(model, optimiser, inputs, initial_loss=(scored.loss / 4).tolist())


def test_by_hand() -> None:
    found = trained_once()
    # The gradient: (−½, ½) at the biases and at the weights of unit 0, nothing at the hidden layer, for unit 0 has no
    # weight to a score yet. Its norm: √(4 · ¼) = 1.
    for row in found:
        assert row["diag/gradient_norm"] == pytest.approx(1.0)
        assert row["diag/dead"] == 0.5
        assert row["diag/saturated"] == 0.0
        assert row["diag/initial_loss"] == pytest.approx(0.693147)
    # The hidden weights do not move: the middle of 0 and anything is 0 in logarithms.
    assert [row["diag/update_ratio"] for row in found] == [0.0, 0.0]


@dataclass
class Still:
    """An optimiser that has measured what a test says."""

    ratios: list[float]

    def updates(self) -> list[tuple[str, torch.Tensor]]:
        return [("w", torch.tensor(self.ratios))]

    def gradient_norm(self) -> torch.Tensor:
        return torch.tensor([1.0] * len(self.ratios))


def test_what_is_not_finite_is_left_out() -> None:
    objectives = [objective(model={"kind": "linear"})] * 3
    model = build_model(objectives, input_shape=(2,), n_outputs=2, input_rms=1.0, seeds=[0] * 3, device="cpu")
    still = cast("Any", Still([0.5, float("inf"), float("nan")]))
    found = diagnostics(model, still, torch.zeros(1, 2))
    assert found == [
        {"diag/gradient_norm": 1.0, "diag/update_ratio": 0.5, "diag/update_ratio/w": 0.5},
        {"diag/gradient_norm": 1.0},
        {"diag/gradient_norm": 1.0},
    ]


def test_only_the_head_of_a_minibatch_is_looked_at() -> None:
    objectives = [objective(model={"kind": "mlp", "hidden": [1]})]
    model = build_model(objectives, input_shape=(1,), n_outputs=2, input_rms=1.0, seeds=[0], device="cpu")
    model.parameters[0].value[:] = 1.0
    inputs = -torch.ones(SAMPLES + 1, 1)
    inputs[-1] = 1.0  # the one sample that the unit fires for
    (found,) = diagnostics(model, cast("Any", Still([0.1])), inputs)
    assert found["diag/dead"] == 1.0


def test_a_pack_reports_them_with_its_first_epoch() -> None:
    torch.set_num_threads(1)
    base = objective()
    pack = Pack([Member(base, 0), Member(base, 1)], load_dataset(base, study_seed=0), data_seed=0, epochs=1)
    for result in pack.train_epoch():
        found = {name for name in result.metrics if name.startswith("diag/")}
        assert found == {
            "diag/update_ratio", "diag/gradient_norm", "diag/dead", "diag/saturated", "diag/initial_loss",
            "diag/chance_loss", "diag/update_ratio/layers.0", "diag/update_ratio/layers.3", "diag/dead/layers.1",
        }  # fmt: skip
        assert result.metrics["diag/chance_loss"] == pytest.approx(2.302585)
        assert 2.2 < result.metrics["diag/initial_loss"] < 2.6


def start(weights: list[list[float]], inputs: list[list[float]], **keys: Any) -> dict[str, float]:
    """Histograms of one hidden layer with weights set by hand."""
    model_keys = {"kind": "mlp", "hidden": [len(weights)], **keys}
    shape = (len(inputs[0]),)
    objectives = [objective(model=model_keys)]
    model = build_model(objectives, input_shape=shape, n_outputs=2, input_rms=1.0, seeds=[0], device="cpu")
    next(p for p in model.parameters if p.penalised).value[:] = torch.tensor(weights)
    (row,) = start_histograms(model, torch.tensor(inputs))
    return {name.removeprefix("diag/start/layers.1/"): value for name, value in row.items()}


def test_a_histogram_at_the_start_by_hand() -> None:
    # Activations of unit 0: 0, 3, 6, 12; of unit 1, which reads the same with −1: 0 four times, so it is dead.
    row = start([[1.0], [-1.0]], [[0.0], [3.0], [6.0], [12.0]])
    shares = [row.pop(f"{i:02}") for i in range(BINS)]
    assert row == {"low": 0.0, "high": 12.0, "dead": 0.5}
    # Bins of width 1: five zeros of eight in the first, then 3 and 6, and the highest in the last.
    assert shares == [0.625, 0, 0, 0.125, 0, 0, 0.125, 0, 0, 0, 0, 0.125]


def test_equal_activations_lie_in_one_bin() -> None:
    row = start([[1.0]], [[2.0], [2.0]])
    assert (row["low"], row["high"], row["00"], sum(row[f"{i:02}"] for i in range(BINS))) == (2.0, 2.0, 1.0, 1.0)


def test_activations_that_are_not_finite_have_no_histogram() -> None:
    assert start([[1.0]], [[1.0], [float("inf")]]) == {}


def test_a_deep_net_has_histograms_of_some_layers_with_the_first_and_the_last() -> None:
    hidden = [4] * 20
    model = build_model(
        [objective(model={"kind": "mlp", "hidden": hidden})] * 2,
        input_shape=(3,), n_outputs=2, input_rms=1.0, seeds=[0, 1], device="cpu",
    )  # fmt: skip
    names = [activity.name for activity in model.activities(torch.ones(2, 3))]
    rows = start_histograms(model, torch.ones(2, 3))
    layers = list(dict.fromkeys(name.split("/")[2] for name in rows[0]))
    assert len(rows) == 2
    assert len(layers) == MAX_LAYERS
    assert (layers[0], layers[-1]) == (names[0], names[-1])


def test_histograms_are_of_the_first_epoch_of_a_training_that_is_long_enough() -> None:
    given = objective(model={"kind": "mlp", "hidden": [8]}, batch_size=100)
    dataset = load_dataset(given, study_seed=0)

    def epochs(n: int) -> list[bool]:
        pack = Pack([Member(given, 0)], dataset, data_seed=0, epochs=n)
        return [any("diag/start/" in name for name in pack.train_epoch()[0].metrics) for _ in range(n)]

    steps = -(-len(dataset.prepared([]).train.labels) // 100)
    assert steps == 15  # of an epoch; a training long enough has 60
    assert epochs(4) == [True, False, False, False]
    assert epochs(3) == [False] * 3
