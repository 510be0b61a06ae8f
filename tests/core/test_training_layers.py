"""Layers and initial weights against torch.nn and numbers worked out by hand."""

import math

import pytest
import torch

from hpsearch.objective.models import Init
from hpsearch.training.initialisation import RELU_GAIN, he_normal, initial
from hpsearch.training.layers import Activation, BatchNorm, Dropout, Linear, Pass, Relu
from hpsearch.training.layers.activations import inspect
from hpsearch.training.layers.dropout import hashed
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


STANDARD_DEVIATIONS: dict[Init, tuple[float, float]] = {
    # Of a hidden layer of 300 units of 200 inputs, and of one of scores, both over inputs of root mean square 2.
    "small_random": (0.01, 0.01),
    "large_random": (1.0, 1.0),
    "xavier": (math.sqrt(2 / 500) / 2, 0.3 * math.sqrt(2 / 500) / 2),
    "xavier_uniform": (math.sqrt(2 / 500) / 2, 0.3 * math.sqrt(2 / 500) / 2),
    "he": (math.sqrt(2 / 200) / 2, 0.3 / math.sqrt(200) / 2),
    "he_uniform": (math.sqrt(2 / 200) / 2, 0.3 / math.sqrt(200) / 2),
    "orthogonal": (1 / math.sqrt(300) / 2, 0.3 / math.sqrt(300) / 2),
    "torch": (1 / math.sqrt(200) / math.sqrt(3), 1 / math.sqrt(200) / math.sqrt(3)),
}


@pytest.mark.parametrize("init", STANDARD_DEVIATIONS)
@pytest.mark.parametrize("last", [False, True])
def test_initial_weights_have_the_standard_deviation_of_their_source(init: Init, last: bool) -> None:
    weights, biases = initial(init, (300, 200), seeded(), input_rms=2.0, last=last)
    # 60,000 numbers: a relative error of 1/sqrt(2n) = 0.003, four of those.
    assert weights.std().item() == pytest.approx(STANDARD_DEVIATIONS[init][last], rel=0.012)
    assert biases.any() == (init == "torch")
    if init.endswith("uniform"):
        bound = math.sqrt(3) * STANDARD_DEVIATIONS[init][last]
        assert 0.999 * bound < weights.abs().max() <= bound


def test_zeros_are_zeros() -> None:
    weights, biases = initial("zeros", (3, 2), seeded())
    assert not weights.any()
    assert not biases.any()


def test_fans_of_a_convolution_count_its_window() -> None:
    # Glorot's bound is sqrt(6 / (fan_in + fan_out)); 3 × 3 × 20 and 3 × 3 × 30 make 450.
    weights, _ = initial("xavier_uniform", (30, 20, 3, 3), seeded())
    assert weights.abs().max().item() == pytest.approx(math.sqrt(6 / 450), rel=0.01)
    reference = torch.empty(30, 20, 3, 3)
    torch.nn.init.xavier_uniform_(reference, generator=seeded())
    torch.testing.assert_close(weights, reference)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 2, 3, 3)])
def test_orthogonal_weights_are(shape: tuple[int, ...]) -> None:
    weights, _ = initial("orthogonal", shape, seeded(), input_rms=0.5)
    rows = weights.flatten(1) * 0.5
    rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), rtol=0, atol=1e-5)


def test_torch_is_what_torch_starts_from() -> None:
    linear, conv = initial("torch", (5, 4), seeded(3)), initial("torch", (5, 4, 3, 3), seeded(4))
    torch.manual_seed(3)
    references: list[torch.nn.Linear | torch.nn.Conv2d] = [torch.nn.Linear(4, 5)]
    torch.manual_seed(4)
    references.append(torch.nn.Conv2d(4, 5, 3))
    for (weight, bias), reference in zip((linear, conv), references, strict=True):
        assert reference.bias is not None
        torch.testing.assert_close(weight, reference.weight.detach())
        torch.testing.assert_close(bias, reference.bias.detach())


def test_streams_differ_by_seed_purpose_and_path() -> None:
    streams = [(1, Purpose.ORDER, 1), (2, Purpose.ORDER, 1), (1, Purpose.ORDER, 2), (1, Purpose.INITIALISATION, 1)]
    drawn = {torch.rand(1, generator=torch_stream(*stream)).item() for stream in streams}
    assert len(drawn) == 4
    assert torch_stream(*streams[0]).initial_seed() == torch_stream(*streams[0]).initial_seed()


@pytest.mark.parametrize("first", [True, False])
def test_linear_and_relu_equal_torch_nn(first: bool) -> None:
    weights = torch.randn(3, 5, 4, generator=seeded())
    biases = torch.randn(3, 5, generator=seeded(1))
    linear, relu = Linear(weights.clone(), biases, first=first), Relu()
    assert linear.bias is not None
    inputs = torch.randn(6, 4, generator=seeded(2)) if first else torch.randn(3, 4, 6, generator=seeded(2))
    upstream = torch.randn(3, 5, 6, generator=seeded(3))
    outputs = relu.forward(linear.forward(inputs))
    of_inputs = linear.backward(relu.backward(upstream.clone()))
    for k in range(3):
        reference = torch.nn.Linear(4, 5)
        reference.load_state_dict({"weight": weights[k], "bias": biases[k]})
        x = (inputs if first else inputs[k].T).clone().requires_grad_()
        y = torch.nn.functional.relu(reference(x))
        torch.testing.assert_close(outputs[k].T, y.detach())
        torch.autograd.backward(y, upstream[k].T)
        torch.testing.assert_close(linear.weight.grad[k], reference.weight.grad)
        torch.testing.assert_close(linear.bias.grad[k, :, 0], reference.bias.grad)
        if of_inputs is not None:
            torch.testing.assert_close(of_inputs[k].T, x.grad)
    assert (of_inputs is None) is first


@pytest.mark.parametrize("images", [False, True])
def test_batch_norm_equals_torch_nn_over_several_minibatches(images: bool) -> None:
    momenta = [0.1, 0.5, 1.0]
    norm = BatchNorm(4, torch.tensor(momenta))
    references: list[torch.nn.BatchNorm1d | torch.nn.BatchNorm2d] = [
        (torch.nn.BatchNorm2d if images else torch.nn.BatchNorm1d)(4, momentum=momentum) for momentum in momenta
    ]
    for parameter in norm.parameters:
        parameter.value.normal_(generator=seeded(9))
    for k, reference in enumerate(references):
        for ours, theirs in zip(norm.parameters, reference.parameters(), strict=True):
            theirs.data.copy_(ours.value[k])
    for i, size in enumerate((6, 6, 2)):
        inputs = 3 + 5 * torch.randn((size, 3, 4, 2, 3) if images else (3, 4, size), generator=seeded(i))
        upstream = torch.randn(inputs.shape, generator=seeded(100 + i))
        outputs, gradient = norm.forward(inputs, Pass.TRAINING), norm.backward(upstream)
        assert gradient is not None
        for k, reference in enumerate(references):
            x = (inputs[:, k] if images else inputs[k].T).clone().requires_grad_()
            y = reference(x)
            torch.autograd.backward(y, upstream[:, k] if images else upstream[k].T)
            torch.testing.assert_close(outputs[:, k] if images else outputs[k].T, y.detach())
            torch.testing.assert_close(gradient[:, k] if images else gradient[k].T, x.grad, rtol=1e-4, atol=1e-5)
            assert reference.running_mean is not None
            assert reference.running_var is not None
            torch.testing.assert_close(norm.mean.value[k], reference.running_mean)
            torch.testing.assert_close(norm.variance.value[k], reference.running_var)
            for ours, theirs in zip(norm.parameters, reference.parameters(), strict=True):
                torch.testing.assert_close(ours.grad[k], theirs.grad, rtol=1e-4, atol=1e-5)
    evaluated = norm.forward(inputs, Pass.EVALUATION)
    for k, reference in enumerate(references):
        x = inputs[:, k] if images else inputs[k].T
        torch.testing.assert_close(
            evaluated[:, k] if images else evaluated[k].T, reference.eval()(x).detach(), rtol=1e-4, atol=1e-5
        )


def test_running_statistics_by_hand() -> None:
    norm = BatchNorm(1, torch.tensor([0.1]))
    norm.forward(torch.tensor([[[1.0, 3.0, 5.0]]]), Pass.TRAINING)
    # Mean 3, unbiased variance (4 + 0 + 4) / 2 = 4: 0.9 · 0 + 0.1 · 3 and 0.9 · 1 + 0.1 · 4.
    assert norm.mean.value.item() == pytest.approx(0.3)
    assert norm.variance.value.item() == pytest.approx(1.3)
    norm.forward(torch.tensor([[[7.0, 8.0]]]), Pass.INSPECTION)
    norm.forward(torch.tensor([[[7.0, 8.0]]]), Pass.EVALUATION)
    assert norm.mean.value.item() == pytest.approx(0.3)


def test_one_number_per_feature_is_normalised_by_the_running_statistics() -> None:
    norm = BatchNorm(1, torch.tensor([0.1]))
    norm.forward(torch.tensor([[[1.0, 3.0, 5.0]]]), Pass.TRAINING)
    outputs = norm.forward(torch.tensor([[[2.3]]]), Pass.TRAINING)
    assert outputs.item() == pytest.approx(2 / math.sqrt(1.3), rel=1e-4)
    gradient = norm.backward(torch.ones(1, 1, 1))
    assert gradient is not None
    assert gradient.item() == pytest.approx(1 / math.sqrt(1.3), rel=1e-4)
    assert norm.mean.value.item() == pytest.approx(0.3)


def dropout(rates: list[float], seeds: list[int], layer: int = 1) -> Dropout:
    return Dropout(torch.tensor(rates), seeds, layer=layer)


@pytest.mark.parametrize("shape", [(1, 50, 40), (10, 1, 5, 8, 5)])
def test_dropout_keeps_the_mean(shape: tuple[int, ...]) -> None:
    rates = [0.0, 0.1, 0.5, 0.9]
    axis = 0 if len(shape) == 3 else 1
    inputs = torch.ones(shape).repeat_interleave(4, axis)
    layer = dropout(rates, [3, 4, 5, 6])
    outputs = torch.stack([layer.forward(inputs, Pass.TRAINING) for _ in range(50)])
    for k, rate in enumerate(rates):
        own = outputs.select(axis + 1, k).flatten()
        assert torch.unique(own).tolist() == pytest.approx([0.0, 1 / (1 - rate)][0 if rate else 1 :])
        # n = 100,000 numbers of variance rate / (1 − rate): five standard errors, for four rates and two layouts.
        assert own.mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(rate / (1 - rate) / 1e5) + 1e-6)


def test_dropout_passes_back_what_it_let_through() -> None:
    layer = dropout([0.5, 0.2], [1, 2])
    inputs, upstream = torch.randn(2, 6, 5, generator=seeded()), torch.randn(2, 6, 5, generator=seeded(1))
    outputs = layer.forward(inputs, Pass.TRAINING)
    assert layer.forward(inputs, Pass.EVALUATION) is inputs
    assert layer.forward(inputs, Pass.INSPECTION) is inputs
    torch.testing.assert_close(layer.backward(upstream), upstream * outputs / inputs)


def test_a_rate_next_to_one_stays_below_it() -> None:
    outputs = dropout([0.999999999], [1]).forward(torch.ones(1, 100, 100), Pass.TRAINING)
    assert outputs.isfinite().all()
    assert outputs.count_nonzero() < 2


def masks(layer: Dropout, epoch: int, n_members: int, n_passes: int = 3) -> torch.Tensor:
    layer.begin_epoch(epoch)
    return torch.stack([layer.forward(torch.ones(n_members, 30, 20), Pass.TRAINING) for _ in range(n_passes)])


def test_masks_are_the_members_own_in_any_pack() -> None:
    seeds = [10, 11, 12, 13, 14, 15, 16]
    packed = dropout([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], seeds)
    for epoch in (1, 2):
        alone, wide = masks(dropout([0.5], [15]), epoch, 1), masks(packed, epoch, 7)
        assert torch.equal(alone[:, 0], wide[:, 5])
    packed.keep(torch.tensor([5, 1]))
    narrow = torch.stack([packed.forward(torch.ones(2, 30, 20), Pass.TRAINING) for _ in range(2)])
    lone = dropout([0.5], [15])
    assert torch.equal(masks(lone, 2, 1, 5)[3:, 0], narrow[:, 0])
    assert torch.equal(masks(packed, 3, 2)[:, 0], masks(lone, 3, 1)[:, 0])


def test_masks_differ_by_seed_epoch_layer_and_minibatch() -> None:
    found = [
        *masks(dropout([0.5], [1]), 1, 1),
        *masks(dropout([0.5], [1]), 2, 1),
        *masks(dropout([0.5], [2]), 1, 1),
        *masks(dropout([0.5], [1], layer=2), 1, 1),
    ]
    flat = torch.stack(found).flatten(1) - 1  # ± 1
    correlations = flat @ flat.T / flat.shape[1]
    # Of 600 independent signs: standard deviation 1 / sqrt(600); five of those for 66 pairs.
    assert (correlations - torch.eye(12)).abs().max() < 5 / math.sqrt(600)


def test_the_hash_is_the_published_one() -> None:
    def published(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    numbers = [0, 1, 2, 12345, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    given = torch.tensor([n - 2**32 if n >= 2**31 else n for n in numbers], dtype=torch.int32)
    assert [n % 2**32 for n in hashed(given).tolist()] == [published(n) for n in numbers]


def test_activations_by_hand() -> None:
    expected = {
        "sigmoid": [[1 / (1 + math.exp(-x)) for x in (-2, -0.5, 0, 0.5, 2, 3)]] * 2,
        "tanh": [[math.tanh(x) for x in (-2, -0.5, 0, 0.5, 2, 3)]] * 2,
        "leaky_relu": [[-0.2, -0.05, 0, 0.5, 2, 3], [-1.0, -0.25, 0, 0.5, 2, 3]],
        "prelu": [[-0.2, -0.05, 0, 0.5, 2, 3], [-1.0, -0.25, 0, 0.5, 2, 3]],
        "elu": [
            [0.1 * math.expm1(-2), 0.1 * math.expm1(-0.5), 0, 0.5, 2, 3],
            [0.5 * math.expm1(-2), 0.5 * math.expm1(-0.5), 0, 0.5, 2, 3],
        ],
        "maxout": [[-0.5, 0.5, 3]] * 2,
        "gelu": [[x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in (-2, -0.5, 0, 0.5, 2, 3)]] * 2,
        "silu": [[x / (1 + math.exp(-x)) for x in (-2, -0.5, 0, 0.5, 2, 3)]] * 2,
    }
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0, 3.0])
    for name, values in expected.items():
        flat = Activation(name, torch.tensor([0.1, 0.5]))  # type: ignore[arg-type]
        outputs = flat.forward(x.view(1, 6, 1).repeat(2, 1, 1), Pass.EVALUATION)
        torch.testing.assert_close(outputs.squeeze(2), torch.tensor(values, dtype=torch.float32))
        image = flat.forward(x.view(1, 1, 6, 1, 1).repeat(1, 2, 1, 1, 1), Pass.EVALUATION)
        torch.testing.assert_close(image[0, :, :, 0, 0], outputs.squeeze(2))


def test_elu_of_large_numbers_has_a_gradient() -> None:
    elu = Activation("elu", torch.tensor([2.0]))
    elu.forward(torch.tensor([[[1e4], [-1e4], [-1.0]]]), Pass.TRAINING)
    gradient = elu.backward(torch.ones(1, 3, 1))
    assert gradient is not None
    assert gradient.flatten().tolist() == pytest.approx([1.0, 0.0, 2 * math.exp(-1)])


def test_activity_by_hand() -> None:
    # Two members with two units and two samples.
    outputs = torch.tensor([[[0.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    activity = inspect("layers.1", outputs, dead=0.0)
    assert activity.mean.tolist() == [1.0, 0.0]
    assert activity.spread.tolist() == pytest.approx([math.sqrt(3), 0.0])
    assert activity.dead.tolist() == [0.5, 1.0]
    assert activity.saturated.tolist() == [0.0, 0.0]
    maps = outputs.permute(2, 0, 1).view(2, 2, 2, 1, 1)
    assert inspect("", maps, dead=0.0).dead.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("name", "saturated", "dead"),
    [("sigmoid", 0.5, 0.0), ("tanh", 0.5, 0.0), ("elu", 0.25, 0.0), ("silu", 0.0, 0.25), ("leaky_relu", 0.0, 0.0)],
)
def test_saturated_and_dead_by_activation(name: str, saturated: float, dead: float) -> None:
    layer = Activation(name, torch.tensor([0.5]))  # type: ignore[arg-type]
    layer.forward(torch.tensor([-20.0, -1.0, 1.0, 20.0]).view(1, 4, 1).repeat(1, 1, 3), Pass.INSPECTION)
    assert layer.activity is not None
    assert layer.activity.saturated.tolist() == [saturated]
    assert layer.activity.dead.tolist() == [dead]
