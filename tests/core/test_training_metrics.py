"""Metrics against scikit-learn, over minibatches and members."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    hinge_loss,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    top_k_accuracy_score,
)

from hpsearch.objective import TrainObjective, train_metrics
from hpsearch.training.losses import build_loss
from hpsearch.training.metrics import evaluation

Split = Literal["train", "val"]


def objective(loss: str = "softmax") -> TrainObjective:
    return TrainObjective.model_validate({"kind": "train", "data": {"source": "digits"}, "loss": {"kind": loss}})


def evaluate(
    scores: torch.Tensor, targets: torch.Tensor, loss: str = "softmax", split: Split = "val", batch: int = 7
) -> list[dict[str, float]]:
    o, n_members = objective(loss), len(scores)
    stacked = build_loss([o] * n_members, "cpu")
    accumulator = evaluation(o, scores.shape[1], n_members, "cpu", split=split)
    for part, labels in zip(torch.split(scores, batch, 2), torch.split(targets, batch), strict=True):
        accumulator.add(part, labels, stacked.score(part.clone(), labels))
    return accumulator.result()


def random_scores(n_members: int, n_classes: int, n_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_classes)
    labels = torch.randint(n_classes, (n_samples,), generator=generator)
    scores = torch.randn(n_members, n_classes, n_samples, generator=generator)
    right = torch.nn.functional.one_hot(labels, n_classes).T
    return scores + 0.7 * torch.arange(n_members)[:, None, None] * right, labels


@pytest.mark.parametrize("n_classes", [2, 4, 6, 10])
def test_classification_equals_scikit_learn(n_classes: int) -> None:
    scores, labels = random_scores(3, n_classes, 60)
    classes = np.arange(n_classes)
    for k, found in enumerate(evaluate(scores, labels)):
        own = scores[k].T.double()
        predicted = own.argmax(1)
        expected = {
            "val_loss": log_loss(labels, own.softmax(1), labels=classes),
            "val_accuracy": accuracy_score(labels, predicted),
            "val_macro_f1": f1_score(labels, predicted, average="macro"),
            "val_top5_accuracy": top_k_accuracy_score(labels, own, k=5, labels=classes) if n_classes > 5 else 1.0,
        }
        assert found == pytest.approx(expected, rel=1e-5)


def test_hinge_loss_of_two_classes_equals_scikit_learn() -> None:
    """The lecture's loss of two classes is max(0, 1 − (s₁ − s₀)) for class 1, scikit-learn's binary one."""
    scores, labels = random_scores(2, 2, 30)
    for k, found in enumerate(evaluate(scores, labels, "hinge")):
        margins = (scores[k, 1] - scores[k, 0]).double()
        assert found["val_loss"] == pytest.approx(hinge_loss(labels * 2 - 1, margins), rel=1e-5)
        assert found["val_accuracy"] == accuracy_score(labels, scores[k].argmax(0))


def test_macro_f1_by_hand() -> None:
    """Labels 0 0 1, predicted 0 1 1: F1 is 2 · 1 / (1 + 2) for both; class 2 neither occurs nor is predicted."""
    predicted = torch.tensor([0, 1, 1])
    scores = torch.nn.functional.one_hot(predicted, 3).T.float()[None]
    (found,) = evaluate(scores, torch.tensor([0, 0, 1]))
    assert found["val_macro_f1"] == pytest.approx(2 / 3)


def test_a_tie_is_a_miss() -> None:
    """All scores equal: never strictly the highest; of ten classes never within the top five, of five always."""
    for n_classes, top5 in ((10, 0.0), (5, 1.0)):
        (found,) = evaluate(torch.zeros(1, n_classes, 8), torch.arange(8) % n_classes)
        assert (found["val_accuracy"], found["val_macro_f1"], found["val_top5_accuracy"]) == (0.0, 0.0, top5)


def test_scores_that_are_not_finite_hit_nothing() -> None:
    (found,) = evaluate(torch.full((1, 3, 4), torch.nan), torch.arange(4) % 3)
    assert (found["val_accuracy"], found["val_macro_f1"], found["val_top5_accuracy"]) == (0.0, 0.0, 0.0)
    assert np.isnan(found["val_loss"])


def test_regression_equals_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = 1000 + 5 * torch.randn(50, generator=generator)
    scores = (targets + torch.randn(3, 50, generator=generator) * torch.tensor([[0.0], [2.0], [20.0]]))[:, None]
    for k, found in enumerate(evaluate(scores, targets, "mse")):
        own = scores[k, 0].numpy()
        expected = {
            "val_loss": mean_squared_error(targets, own),
            "val_mae": mean_absolute_error(targets, own),
            "val_r2": r2_score(targets, own),
        }
        assert found == pytest.approx(expected, rel=1e-4)


def test_r2_of_targets_that_are_all_equal() -> None:
    found = evaluate(torch.tensor([[[2.0, 2.0]], [[2.0, 3.0]]]), torch.tensor([2.0, 2.0]), "mse")
    assert [member["val_r2"] for member in found] == [1.0, 0.0]


@pytest.mark.parametrize("loss", ["softmax", "hinge", "mse"])
def test_what_an_objective_says_it_reports(loss: str) -> None:
    classes = loss != "mse"
    scores, labels = random_scores(1, 3 if classes else 1, 10)
    targets: Any = labels if classes else labels.float()
    splits: list[Split] = ["train", "val"]
    names = {name for split in splits for name in evaluate(scores, targets, loss, split)[0]}
    assert names == set(train_metrics(objective(loss)))
