"""Layers, loss, optimiser and initial weights against torch.nn, torch.optim and numbers worked out by hand."""

import math

import pytest
import torch

from hpsearch.objective import MlpModel
from hpsearch.training.initialisation import RELU_GAIN, he_normal
from hpsearch.training.layers import Linear, Parameter, Relu
from hpsearch.training.losses import softmax_cross_entropy
from hpsearch.training.models import mlp
from hpsearch.training.optimisers import LARGE, Sgd
from hpsearch.training.streams import Purpose, torch_stream


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_he_normal_has_the_standard_deviation_of_the_paper() -> None:
    weights = he_normal((400, 200), seeded(), gain=RELU_GAIN)
    # sqrt(2/200) = 0.1. The sample's std of n normals has a relative error of 1/sqrt(2n) = 0.0025: four of those.
    assert weights.std().item() == pytest.approx(0.1, rel=0.01)
    assert weights.mean().item() == pytest.approx(0.0, abs=4 * 0.1 / math.sqrt(80_000))


def test_he_normal_undoes_the_scale_of_the_inputs() -> None:
    plain = he_normal((5, 4), seeded(), gain=RELU_GAIN)
    scaled = he_normal((5, 4), seeded(), gain=RELU_GAIN, input_rms=64.0)
    torch.testing.assert_close(scaled * 64.0, plain)


def test_initial_weights_are_the_members_own_in_any_pack() -> None:
    alone = mlp(MlpModel(kind="mlp", hidden=[7, 5]), 4, 3, input_rms=1.0, seeds=[11], device="cpu")
    packed = mlp(MlpModel(kind="mlp", hidden=[7, 5]), 4, 3, input_rms=1.0, seeds=[9, 10, 11], device="cpu")
    for one, many in zip(alone.parameters, packed.parameters, strict=True):
        assert torch.equal(one.value[0], many.value[2])
        if one.penalised:
            assert not torch.equal(many.value[0], many.value[1])
        else:
            assert not one.value.any()


def test_streams_differ_by_seed_purpose_and_path() -> None:
    streams = [(1, Purpose.ORDER, 1), (2, Purpose.ORDER, 1), (1, Purpose.ORDER, 2), (1, Purpose.INITIALISATION, 1)]
    drawn = {torch.rand(1, generator=torch_stream(*stream)).item() for stream in streams}
    assert len(drawn) == 4
    assert torch_stream(*streams[0]).initial_seed() == torch_stream(*streams[0]).initial_seed()


def test_cross_entropy_of_equal_scores_is_ln_c() -> None:
    scored = softmax_cross_entropy(torch.zeros(2, 10, 5), torch.arange(5))
    assert scored.loss.tolist() == pytest.approx([5 * math.log(10)] * 2)
    assert scored.correct.tolist() == [0, 0]  # a tie is a miss


def test_cross_entropy_of_the_lecture() -> None:
    # cs231n, lecture 3: scores 3.2, 5.1, -1.7 of a cat: probabilities 0.13, 0.87, 0.00 and a loss of 2.04 nats.
    scored = softmax_cross_entropy(torch.tensor([[[3.2], [5.1], [-1.7]]]), torch.tensor([0]))
    assert scored.loss.item() == pytest.approx(2.04, abs=0.005)
    assert scored.gradient.flatten().tolist() == pytest.approx([0.13 - 1, 0.87, 0.0], abs=0.005)


def test_cross_entropy_equals_torch() -> None:
    scores = (10 * torch.randn(3, 4, 8, generator=seeded())).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    scored = softmax_cross_entropy(scores.detach(), labels)
    for k in range(3):
        loss = torch.nn.functional.cross_entropy(scores[k].T, labels, reduction="sum")
        torch.testing.assert_close(scored.loss[k], loss.detach())
        torch.autograd.backward(loss)
        assert scored.correct[k] == (scores[k].argmax(0) == labels).sum()
    torch.testing.assert_close(scored.gradient, scores.grad)


def test_cross_entropy_survives_scores_that_overflow_exp() -> None:
    scored = softmax_cross_entropy(torch.tensor([[[1000.0], [0.0]]]), torch.tensor([1]))
    assert scored.loss.item() == 1000.0


@pytest.mark.parametrize("first", [True, False])
def test_linear_and_relu_equal_torch_nn(first: bool) -> None:
    weights = torch.randn(3, 5, 4, generator=seeded())
    linear, relu = Linear(weights.clone(), first=first), Relu()
    linear.bias.value.normal_(generator=seeded(1))
    inputs = torch.randn(6, 4, generator=seeded(2)) if first else torch.randn(3, 4, 6, generator=seeded(2))
    upstream = torch.randn(3, 5, 6, generator=seeded(3))
    outputs = relu.forward(linear.forward(inputs))
    of_inputs = linear.backward(relu.backward(upstream.clone()))
    for k in range(3):
        reference = torch.nn.Linear(4, 5)
        reference.load_state_dict({"weight": weights[k], "bias": linear.bias.value[k, :, 0]})
        x = (inputs if first else inputs[k].T).clone().requires_grad_()
        y = torch.nn.functional.relu(reference(x))
        torch.testing.assert_close(outputs[k].T, y.detach())
        torch.autograd.backward(y, upstream[k].T)
        torch.testing.assert_close(linear.weight.grad[k], reference.weight.grad)
        torch.testing.assert_close(linear.bias.grad[k, :, 0], reference.bias.grad)
        if of_inputs is not None:
            torch.testing.assert_close(of_inputs[k].T, x.grad)
    assert (of_inputs is None) is first


def test_gradients_agree_with_finite_differences() -> None:
    model = mlp(MlpModel(kind="mlp", hidden=[6, 5]), 4, 3, input_rms=0.1, seeds=[1, 2], device="cpu")
    for p in model.parameters:
        p.value, p.grad = p.value.double(), p.grad.double()
    inputs, labels = torch.randn(7, 4, generator=seeded(), dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    model.backward(softmax_cross_entropy(model.forward(inputs), labels).gradient)
    eps = 1e-6
    for p in model.parameters:
        flat, grad = p.value.view(2, -1), p.grad.view(2, -1)
        for i in range(flat.shape[1]):
            flat[:, i] += eps
            above = softmax_cross_entropy(model.forward(inputs), labels).loss
            flat[:, i] -= 2 * eps
            below = softmax_cross_entropy(model.forward(inputs), labels).loss
            flat[:, i] += eps
            torch.testing.assert_close(grad[:, i], (above - below) / (2 * eps), rtol=1e-6, atol=1e-7)


def step(optimiser: Sgd, parameter: Parameter, gradient: torch.Tensor) -> None:
    optimiser.begin()
    parameter.grad += gradient * optimiser.scale
    optimiser.apply()


def test_sgd_with_momentum_first_steps_by_hand() -> None:
    p = Parameter(torch.tensor([[[1.0]], [[1.0]]]), penalised=True)
    sgd = Sgd([p], lr=torch.tensor([0.1, 0.2]), momentum=torch.tensor([0.5, 0.0]), l2=torch.tensor([0.0, 1.0]))
    step(sgd, p, torch.tensor([[[2.0]], [[2.0]]]))
    # Member 0: v = -0.1 · 2 = -0.2. Member 1: g = 2 + 1 · 1 = 3, v = -0.2 · 3 = -0.6.
    torch.testing.assert_close(p.value.flatten(), torch.tensor([0.8, 0.4]))
    step(sgd, p, torch.tensor([[[2.0]], [[2.0]]]))
    # Member 0: v = 0.5 · -0.2 - 0.2 = -0.3. Member 1: g = 2 + 0.4 = 2.4, v = -0.48.
    torch.testing.assert_close(p.value.flatten(), torch.tensor([0.5, -0.08]))
    sgd.lr = torch.tensor([0.01, 0.0])
    step(sgd, p, torch.tensor([[[2.0]], [[2.0]]]))
    # A smaller lr scales new gradients, not the velocity: member 0: v = 0.5 · -0.3 - 0.01 · 2 = -0.17.
    torch.testing.assert_close(p.value.flatten(), torch.tensor([0.33, -0.08]))


@pytest.mark.parametrize("numel", [12, LARGE])
@pytest.mark.parametrize("penalised", [True, False])
def test_sgd_equals_torch_optim(numel: int, penalised: bool) -> None:
    lrs, momenta, l2s = [0.1, 0.01, 0.3], [0.9, 0.0, 0.5], [0.0, 0.1, 0.01]
    p = Parameter(torch.randn(3, numel // 4, 4, generator=seeded()), penalised=penalised)
    sgd = Sgd([p], lr=torch.tensor(lrs), momentum=torch.tensor(momenta), l2=torch.tensor(l2s))
    references = [torch.nn.Parameter(p.value[k].clone()) for k in range(3)]
    optims = [
        torch.optim.SGD([ref], lr=lr, momentum=momentum, weight_decay=l2 if penalised else 0.0)
        for ref, lr, momentum, l2 in zip(references, lrs, momenta, l2s, strict=True)
    ]
    for i in range(4):
        gradient = torch.randn(p.value.shape, generator=seeded(i))
        step(sgd, p, gradient)
        for k, optim in enumerate(optims):
            references[k].grad = gradient[k]
            optim.step()
            torch.testing.assert_close(p.value[k], references[k].detach(), rtol=1e-5, atol=1e-6)


def test_squared_norm_counts_weights_and_not_biases() -> None:
    model = mlp(MlpModel(kind="mlp", hidden=[2]), 2, 2, input_rms=1.0, seeds=[0, 1], device="cpu")
    for p in model.parameters:
        p.value.fill_(3.0)
        p.value[1] = 1.0
    assert model.squared_norm().tolist() == pytest.approx([72.0, 8.0])  # 8 weights of 3² and of 1²
