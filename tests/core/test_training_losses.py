"""Losses against torch.nn and numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch

from hpsearch.objective import TrainObjective
from hpsearch.training.losses import build_loss, softmax_cross_entropy, theoretical_initial_loss

LABELS = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])


def objectives(*losses: dict[str, Any]) -> list[TrainObjective]:
    document = {"kind": "train", "data": {"source": "digits"}}
    return [TrainObjective.model_validate({**document, "loss": loss}) for loss in losses]


def random_scores(n_members: int = 3, n_outputs: int = 4) -> torch.Tensor:
    return 3 * torch.randn(n_members, n_outputs, 8, generator=torch.Generator().manual_seed(0))


def test_cross_entropy_of_equal_scores_is_ln_c() -> None:
    scored = softmax_cross_entropy(torch.zeros(2, 10, 5), torch.arange(5))
    assert scored.loss.tolist() == pytest.approx([5 * math.log(10)] * 2)
    assert scored.correct is not None
    assert scored.correct.tolist() == [0, 0]  # a tie is a miss


def test_cross_entropy_of_the_lecture() -> None:
    # cs231n, lecture 3: scores 3.2, 5.1, -1.7 of a cat: probabilities 0.13, 0.87, 0.00 and a loss of 2.04 nats.
    scored = softmax_cross_entropy(torch.tensor([[[3.2], [5.1], [-1.7]]]), torch.tensor([0]))
    assert scored.loss.item() == pytest.approx(2.04, abs=0.005)
    assert scored.gradient.flatten().tolist() == pytest.approx([0.13 - 1, 0.87, 0.0], abs=0.005)


def test_cross_entropy_survives_scores_that_overflow_exp() -> None:
    scored = softmax_cross_entropy(torch.tensor([[[1000.0], [0.0]]]), torch.tensor([1]))
    assert scored.loss.item() == 1000.0


@pytest.mark.parametrize("smoothing", [(0.0, 0.0, 0.0), (0.0, 0.1, 0.6)])
def test_softmax_equals_torch(smoothing: tuple[float, ...]) -> None:
    loss = build_loss(objectives(*({"label_smoothing": s} for s in smoothing)), "cpu")
    scores = random_scores().requires_grad_()
    scored = loss.score(scores.detach().clone(), LABELS)
    for k, s in enumerate(smoothing):
        reference = torch.nn.functional.cross_entropy(scores[k].T, LABELS, reduction="sum", label_smoothing=s)
        torch.testing.assert_close(scored.loss[k], reference.detach())
        torch.autograd.backward(reference)
        assert scored.correct is not None
        assert scored.correct[k] == (scores[k].argmax(0) == LABELS).sum()
    torch.testing.assert_close(scored.gradient, scores.grad)


def test_hinge_of_the_lecture() -> None:
    # cs231n, lecture 3, cat, car and frog in the columns: losses 2.9, 0 and 12.9.
    scores = torch.tensor([[[3.2, 1.3, 2.2], [5.1, 4.9, 2.5], [-1.7, 2.0, -3.1]]])
    loss = build_loss(objectives({"kind": "hinge"}), "cpu")
    scored = loss.score(scores, torch.tensor([0, 1, 2]))
    assert scored.loss.item() == pytest.approx(2.9 + 0 + 12.9)
    assert scored.gradient[0].T.tolist() == [[-1, 1, 0], [0, 0, 0], [1, 1, -2]]
    assert scored.correct is not None
    assert scored.correct.tolist() == [1]


def test_hinge_equals_torch() -> None:
    margins = (0.5, 1.0, 5.0)
    loss = build_loss(objectives(*({"kind": "hinge", "margin": m} for m in margins)), "cpu")
    scores = random_scores().requires_grad_()
    scored = loss.score(scores.detach().clone(), LABELS)
    for k, margin in enumerate(margins):
        # torch divides by the number of classes.
        reference = 4 * torch.nn.functional.multi_margin_loss(scores[k].T, LABELS, margin=margin, reduction="sum")
        torch.testing.assert_close(scored.loss[k], reference.detach())
        torch.autograd.backward(reference)
        assert scored.correct is not None
        assert scored.correct[k] == (scores[k].argmax(0) == LABELS).sum()
    torch.testing.assert_close(scored.gradient, scores.grad)


def test_squared_error_equals_torch() -> None:
    loss = build_loss(objectives({"kind": "mse"}, {"kind": "mse"}), "cpu")
    scores = random_scores(2, 1).requires_grad_()
    targets = torch.arange(8.0)
    scored = loss.score(scores.detach().clone(), targets)
    for k in range(2):
        reference = torch.nn.functional.mse_loss(scores[k, 0], targets, reduction="sum")
        torch.testing.assert_close(scored.loss[k], reference.detach())
        torch.autograd.backward(reference)
    torch.testing.assert_close(scored.gradient, scores.grad)
    assert scored.correct is None


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"kind": "softmax"}, math.log(10)),
        ({"kind": "softmax", "label_smoothing": 0.3}, math.log(10)),
        ({"kind": "hinge"}, 9.0),
        ({"kind": "hinge", "margin": 0.5}, 4.5),
    ],
)
def test_equal_scores_cost_what_theory_says(loss: dict[str, Any], expected: float) -> None:
    (objective,) = objectives(loss)
    assert theoretical_initial_loss(objective.loss, 10) == pytest.approx(expected)
    scored = build_loss([objective], "cpu").score(torch.full((1, 10, 5), 0.7), torch.arange(5))
    assert scored.loss.item() / 5 == pytest.approx(expected, rel=1e-5)
    assert scored.correct is not None
    assert scored.correct.tolist() == [0]


def test_a_regression_has_no_theory_without_its_targets() -> None:
    (objective,) = objectives({"kind": "mse"})
    assert theoretical_initial_loss(objective.loss, 1) is None


@pytest.mark.parametrize("name", ["softmax", "hinge", "mse"])
def test_members_that_stay_keep_their_numbers(name: str) -> None:
    numbers = [{"kind": name, "label_smoothing": s, "margin": m} for s, m in ((0.0, 1.0), (0.2, 2.0), (0.4, 3.0))]
    scores = random_scores(3, 1 if name == "mse" else 4)
    targets = LABELS.float() if name == "mse" else LABELS
    loss = build_loss(objectives(*numbers), "cpu")
    before = loss.score(scores.clone(), targets)
    loss.keep(torch.tensor([2, 0]))
    after = loss.score(scores[[2, 0]], targets)
    torch.testing.assert_close(after.loss, before.loss[[2, 0]])
    torch.testing.assert_close(after.gradient, before.gradient[[2, 0]])


@pytest.mark.parametrize("name", ["softmax", "hinge", "mse"])
def test_a_member_with_broken_scores_harms_itself_alone(name: str) -> None:
    scores = random_scores(2, 1 if name == "mse" else 4)
    targets = LABELS.float() if name == "mse" else LABELS
    loss = build_loss(objectives({"kind": name}, {"kind": name}), "cpu")
    whole = loss.score(scores.clone(), targets)
    scores[0, 0, 3] = math.nan
    broken = loss.score(scores, targets)
    assert math.isnan(broken.loss[0].item())
    torch.testing.assert_close(broken.loss[1], whole.loss[1])
    torch.testing.assert_close(broken.gradient[1], whole.gradient[1])
