"""Stacked models against the same nets of torch.nn with copied weights, and against themselves alone."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from hpsearch.errors import DataError
from hpsearch.objective import TrainObjective
from hpsearch.objective.models import CnnModel, LinearModel, Model, ResnetModel
from hpsearch.training.layers import Buffer, Parameter
from hpsearch.training.losses import build_loss
from hpsearch.training.models import StackedModel, build_model, model_key

ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "prelu", "elu", "maxout", "gelu", "silu")
MODELS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp": {"kind": "mlp", "hidden": [7, 5]},
    "cnn": {"kind": "cnn", "channels": [3, 4], "hidden": [6]},
    "resnet": {"kind": "resnet", "channels": [3, 4], "blocks": 2},
}
NETS = [(kind, a, n) for kind, a, n in itertools.product(MODELS, ACTIVATIONS, (False, "before", "after"))
        if kind != "linear" or (a, n) == ("relu", False)]  # fmt: skip
SHAPE = (8, 6, 2)
N_CLASSES = 3
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(kind: str, *, precision: str = "float32", loss: str = "softmax", **keys: Any) -> TrainObjective:
    document = {"kind": "train", "data": {"source": "digits"}, "precision": precision, "loss": {"kind": loss}}
    return TrainObjective.model_validate({**document, "model": {**MODELS.get(kind, {"kind": kind}), **keys}})


def build(objectives: Sequence[TrainObjective], seeds: Sequence[int], *, n_outputs: int = N_CLASSES) -> StackedModel:
    return build_model(
        objectives, input_shape=SHAPE, n_outputs=n_outputs, input_rms=1.0, seeds=seeds, device="cpu"
    )  # fmt: skip


def members(kind: str, **keys: Any) -> list[TrainObjective]:
    """Three that differ in every number that a member has of its own."""
    if kind == "linear":
        return [objective(kind, init_gain=gain) for gain in (1.0, 2.0, 3.0)]
    own = zip((0.01, 0.2, 0.5), (1.0, 0.5, 2.0), (0.1, 0.3, 0.9), ("he", "xavier", "torch"), strict=True)
    return [
        objective(kind, slope=slope, alpha=alpha, batch_norm_momentum=momentum, init=init, **keys)
        for slope, alpha, momentum, init in own
    ]


def dropping(kind: str, rate: float) -> dict[str, Any]:
    return {} if kind == "linear" else {"dropout": rate}


def tensors(model: StackedModel) -> list[Parameter | Buffer]:
    return [*model.parameters, *model.buffers]


def minibatch(size: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, *SHAPE, generator=seeded(seed))


# The same nets, one at a time, out of torch.nn.


class Maxout(nn.Module):
    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 1, (-1, self.pieces)).amax(2)


class Block(nn.Module):
    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.main(x) + self.shortcut(x)
        return y


class Reference:
    """Makes the net of one member."""

    def __init__(self, model: Model) -> None:
        assert not isinstance(model, LinearModel)
        self.model = model
        self.wide = model.pieces if model.activation == "maxout" else 1
        self.bias = model.batch_norm != "before"

    def activation(self) -> nn.Module:
        made: dict[str, nn.Module] = {
            "sigmoid": nn.Sigmoid(),
            "tanh": nn.Tanh(),
            "relu": nn.ReLU(),
            "leaky_relu": nn.LeakyReLU(self.model.slope),
            "prelu": nn.PReLU(),
            "elu": nn.ELU(self.model.alpha),
            "maxout": Maxout(self.wide),
            "gelu": nn.GELU(),
            "silu": nn.SiLU(),
        }
        return made[self.model.activation]

    def norm(self, place: str, n: int, images: bool) -> list[nn.Module]:
        if self.model.batch_norm != place:
            return []
        return [(nn.BatchNorm2d if images else nn.BatchNorm1d)(n, momentum=self.model.batch_norm_momentum)]

    def activated(self, n: int, images: bool) -> list[nn.Module]:
        before, after = self.norm("before", n * self.wide, images), self.norm("after", n, images)
        return [*before, self.activation(), *after]

    def linears(self, hidden: Sequence[int], n_inputs: int) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Flatten()]
        for n in hidden:
            layers += [nn.Linear(n_inputs, n * self.wide, bias=self.bias), *self.activated(n, images=False)]
            n_inputs = n
        return [*layers, nn.Linear(n_inputs, N_CLASSES)]

    def cnn(self, model: CnnModel) -> list[nn.Module]:
        layers: list[nn.Module] = []
        height, width, n_inputs = SHAPE
        for n in model.channels:
            conv = nn.Conv2d(n_inputs, n * self.wide, model.kernel, padding=model.kernel // 2, bias=self.bias)
            layers += [conv, *self.activated(n, images=True), nn.MaxPool2d(model.pool)]
            height, width, n_inputs = height // model.pool, width // model.pool, n
        return [*layers, *self.linears(model.hidden, height * width * n_inputs)]

    def resnet(self, model: ResnetModel) -> list[nn.Module]:
        n_inputs = model.channels[0]
        conv = nn.Conv2d(SHAPE[2], n_inputs * self.wide, 3, padding=1, bias=self.bias)
        layers: list[nn.Module] = [conv, *self.activated(n_inputs, images=True)]
        for i, n in enumerate(model.channels):
            for j in range(model.blocks):
                stride = 2 if i and not j else 1
                main = nn.Sequential(
                    nn.Conv2d(n_inputs, n * self.wide, 3, stride=stride, padding=1, bias=self.bias),
                    *self.activated(n, images=True),
                    nn.Conv2d(n, n * self.wide, 3, padding=1, bias=self.bias),
                    *self.norm("before", n * self.wide, images=True),
                )
                shortcut: nn.Module = nn.Identity()
                if stride == 2 or n_inputs != n * self.wide:
                    projection = nn.Conv2d(n_inputs, n * self.wide, 1, stride=stride, bias=self.bias)
                    shortcut = nn.Sequential(projection, *self.norm("before", n * self.wide, images=True))
                layers += [Block(main, shortcut), self.activation(), *self.norm("after", n, images=True)]
                n_inputs = n
        return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_inputs, N_CLASSES)]

    def net(self) -> nn.Sequential:
        match self.model:
            case CnnModel():
                return nn.Sequential(*self.cnn(self.model))
            case ResnetModel():
                return nn.Sequential(*self.resnet(self.model))
            case _:
                return nn.Sequential(*self.linears(self.model.hidden, 96))


def reference(member: TrainObjective, model: StackedModel, row: int) -> nn.Sequential:
    """The member's net of torch.nn with its weights; both list their parameters in the order of a forward pass."""
    if isinstance(member.model, LinearModel):
        net = nn.Sequential(nn.Flatten(), nn.Linear(96, N_CLASSES))
    else:
        net = Reference(member.model).net()
    for theirs, ours in zip(net.parameters(), model.parameters, strict=True):
        theirs.data.copy_(ours.value[row].reshape(theirs.shape))
    return net


def shaped(net: nn.Sequential, inputs: torch.Tensor) -> torch.Tensor:
    """Images as torch has them; a net of linear layers takes them as they are."""
    return inputs.permute(0, 3, 1, 2) if isinstance(net[0], nn.Conv2d) else inputs


def shaken(model: StackedModel) -> StackedModel:
    """With biases, slopes, scales and shifts that are not all 0 or 1."""
    for i, parameter in enumerate(model.parameters):
        if not parameter.penalised:
            parameter.value += 0.1 * torch.randn(parameter.value.shape, generator=seeded(i))
    return model


@pytest.mark.parametrize(("kind", "activation", "norm"), NETS)
def test_models_equal_torch_nn(kind: str, activation: str, norm: str | bool) -> None:
    """Scores, all gradients, running statistics and scores at evaluation."""
    trials = members(kind, activation=activation, batch_norm=norm)
    model = shaken(build(trials, SEEDS))
    inputs, upstream = minibatch(), torch.randn(3, N_CLASSES, 5, generator=seeded(1))
    given = inputs.clone()
    nets = [reference(member, model, k) for k, member in enumerate(trials)]
    scores = model.forward(inputs, training=True)
    model.activities(minibatch(4, 8))  # between the two passes: it must not matter
    model.backward(upstream.clone())
    evaluated = model.forward(minibatch(4, 7), training=False)
    assert torch.equal(inputs, given)
    for k, net in enumerate(nets):
        expected = net(shaped(net, inputs))
        torch.testing.assert_close(scores[k].T, expected.detach(), rtol=1e-4, atol=1e-5)
        torch.autograd.backward(expected, upstream[k].T)
        for ours, theirs in zip(model.parameters, net.parameters(), strict=True):
            assert theirs.grad is not None
            own = ours.grad[k].reshape(theirs.shape)
            # Absolute: against the largest gradient, for some are sums that cancel out.
            scale = max(1.0, float(theirs.grad.abs().max()))
            torch.testing.assert_close(own, theirs.grad, rtol=1e-3, atol=2e-5 * scale)
        statistics = [b for name, b in net.named_buffers() if not name.endswith("num_batches_tracked")]
        for buffer, theirs_buffer in zip(model.buffers, statistics, strict=True):
            torch.testing.assert_close(buffer.value[k], theirs_buffer, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            net.eval()
            torch.testing.assert_close(evaluated[k].T, net(shaped(net, minibatch(4, 7))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "activation", "norm"), NETS)
def test_a_member_of_a_stacked_model_equals_the_model_alone(kind: str, activation: str, norm: str | bool) -> None:
    """Three steps with dropout, then an evaluation; two members leave after the second step."""
    trials = members(kind, activation=activation, batch_norm=norm, **dropping(kind, 0.3))
    packed = trained(trials, SEEDS, leave=True)
    for row, k in enumerate((2, 0)):
        alone = trained([trials[k]], [SEEDS[k]], leave=False)
        for ours, own in zip(tensors(packed), tensors(alone), strict=True):
            assert ours.name == own.name
            torch.testing.assert_close(ours.value[row], own.value[0], rtol=1e-4, atol=1e-5)
        scores = packed.forward(minibatch(seed=9), training=False)[row]
        torch.testing.assert_close(scores, alone.forward(minibatch(seed=9), training=False)[0], rtol=1e-4, atol=1e-4)


def trained(trials: Sequence[TrainObjective], seeds: Sequence[int], *, leave: bool) -> StackedModel:
    model, loss = build(trials, seeds), build_loss(trials, "cpu")
    labels = torch.tensor([0, 1, 2, 0, 1])
    model.begin_epoch(1)
    for step in range(3):
        if step == 2 and leave:
            model.keep(torch.tensor([2, 0]))
            loss.keep(torch.tensor([2, 0]))
        for parameter in model.parameters:
            parameter.grad.zero_()
        model.backward(loss.score(model.forward(minibatch(seed=step), training=True), labels).gradient)
        for parameter in model.parameters:
            parameter.value -= 0.005 * parameter.grad
    return model


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("loss_kind", ["softmax", "hinge", "mse"])
def test_gradients_agree_with_finite_differences(kind: str, loss_kind: str) -> None:
    """Of every parameter along a random direction, in double precision, with dropout and batch norm."""
    keys: dict[str, Any] = (
        {} if kind == "linear" else {"activation": "prelu", "batch_norm": "before", "dropout": 0.3, "slope": 0.2}
    )
    trials = [objective(kind, loss=loss_kind, **keys)] * 2
    model, loss = build(trials, [1, 2], n_outputs=1 if loss_kind == "mse" else 3), build_loss(trials, "cpu")
    for tensor in tensors(model):
        tensor.value = tensor.value.double()
    inputs = minibatch().double()
    targets = torch.tensor([0.5, -1, 2, 0, 1]).double() if loss_kind == "mse" else torch.tensor([0, 1, 2, 0, 1])

    def total() -> torch.Tensor:
        model.begin_epoch(1)
        return loss.score(model.forward(inputs, training=True), targets).loss

    for parameter in model.parameters:
        parameter.grad = parameter.grad.double().zero_()
    model.begin_epoch(1)
    model.backward(loss.score(model.forward(inputs, training=True), targets).gradient)
    eps = 1e-6
    for i, parameter in enumerate(model.parameters):
        direction = torch.randn(parameter.value.shape, generator=seeded(i), dtype=torch.float64)
        parameter.value.add_(direction, alpha=eps)
        above = total()
        parameter.value.add_(direction, alpha=-2 * eps)
        below = total()
        parameter.value.add_(direction, alpha=eps)
        slope = (parameter.grad * direction).view(2, -1).sum(1)
        # Rounding of a loss of order 10 to 1e-16, over eps.
        torch.testing.assert_close((above - below) / (2 * eps), slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", MODELS)
def test_initial_weights_are_the_members_own_in_any_pack(kind: str) -> None:
    trials = members(kind)
    alone, packed = build([trials[2]], [13]), build(trials, SEEDS)
    for one, many in zip(alone.parameters, packed.parameters, strict=True):
        assert torch.equal(one.value[0], many.value[2])
        if one.penalised:
            assert not torch.equal(many.value[0], many.value[1])


def test_gain_and_scale_of_the_inputs() -> None:
    def weights(rms: float, **keys: Any) -> list[torch.Tensor]:
        model = build_model(
            [objective("mlp", **keys)], input_shape=(4,), n_outputs=3, input_rms=rms, seeds=[1], device="cpu"
        )
        return [p.value for p in model.parameters if p.penalised]

    plain = weights(1.0)
    for one, other in zip(weights(1.0, init_gain=3.0), plain, strict=True):
        torch.testing.assert_close(one, 3 * other)
    scaled = weights(8.0)
    torch.testing.assert_close(8 * scaled[0], plain[0])
    assert torch.equal(scaled[1], plain[1])
    for one, other in zip(weights(8.0, init="small_random"), weights(1.0, init="small_random"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet"])
def test_zeros_never_break_the_symmetry(kind: str) -> None:
    """All hidden units of a layer stay one unit, whatever is learned; from random weights they do not."""

    def units(init: str) -> list[torch.Tensor]:
        trials = [objective(kind, activation="sigmoid", init=init)]
        model, loss = build(trials, [1]), build_loss(trials, "cpu")
        for step in range(4):
            for parameter in model.parameters:
                parameter.grad.zero_()
            scores = model.forward(minibatch(seed=step), training=True)
            model.backward(loss.score(scores, torch.tensor([0, 1, 2, 0, 0])).gradient)
            for parameter in model.parameters:
                parameter.value -= 0.1 * parameter.grad
        return [p.value[0] for p in model.parameters if p.penalised][:-1]

    for layer in units("zeros"):
        torch.testing.assert_close(layer, layer[:1].expand_as(layer))
    for layer in units("he"):
        assert not torch.allclose(layer, layer[:1].expand_as(layer), atol=1e-3)
    assert any(layer.any() for layer in units("zeros"))


@pytest.mark.parametrize("kind", MODELS)
def test_bfloat16_products_and_float32_weights(kind: str) -> None:
    keys: dict[str, Any] = {} if kind == "linear" else {"activation": "tanh", "batch_norm": True}
    exact, low = (build([objective(kind, precision=p, **keys)], [1]) for p in ("float32", "bfloat16"))
    upstream = torch.randn(1, N_CLASSES, 5, generator=seeded(1))
    scores = [model.forward(minibatch(), training=True) for model in (exact, low)]
    for model in (exact, low):
        model.backward(upstream.clone())
    assert scores[1].dtype == torch.float32
    assert not torch.equal(*scores)
    # A bfloat16 has 8 bits; some layers of sums of such errors.
    assert (scores[0] - scores[1]).abs().max() < 0.05 * scores[0].abs().max()
    for one, other in zip(exact.parameters, low.parameters, strict=True):
        assert other.value.dtype == other.grad.dtype == torch.float32
        assert torch.equal(one.value, other.value)
        assert (one.grad - other.grad).norm() <= 0.1 * one.grad.norm() + 1e-3


def test_names_of_parameters_and_buffers() -> None:
    mlp = build([objective("mlp", hidden=[4], batch_norm=True)], [1])
    assert [p.name for p in mlp.parameters] == [
        "layers.0.weight", "layers.1.scale", "layers.1.shift", "layers.4.weight", "layers.4.bias",
    ]  # fmt: skip
    assert [b.name for b in mlp.buffers] == ["layers.1.running_mean", "layers.1.running_variance"]
    assert [p.penalised for p in mlp.parameters] == [True, False, False, True, False]
    for kind in MODELS:
        model = build(members(kind), SEEDS)
        names = [t.name for t in tensors(model)]
        assert len(set(names)) == len(names)
        other = build([objective(kind, **dropping(kind, 0.5))], [1])
        assert [p.name for p in other.parameters] == [p.name for p in model.parameters]


@pytest.mark.parametrize("kind", MODELS)
def test_flat_minibatches_of_images_are_the_same_images(kind: str) -> None:
    model = build(members(kind), SEEDS)
    images = model.forward(minibatch(), training=False)
    torch.testing.assert_close(model.forward(minibatch().flatten(1), training=False), images)


def test_grey_images_without_an_axis_of_channels() -> None:
    model = build_model(
        [objective("cnn")], input_shape=(8, 8), n_outputs=3, input_rms=1.0, seeds=[1], device="cpu"
    )  # fmt: skip
    assert model.forward(torch.zeros(5, 8, 8), training=False).shape == (1, 3, 5)


@pytest.mark.parametrize("kind", ["cnn", "resnet"])
def test_flat_samples_are_no_images(kind: str) -> None:
    with pytest.raises(DataError, match=rf"model.kind {kind} needs images .* shape \(64,\): take mlp or linear"):
        build_model([objective(kind)], input_shape=(64,), n_outputs=3, input_rms=1.0, seeds=[1], device="cpu")


def test_images_too_small_for_the_model() -> None:
    with pytest.raises(DataError, match=r"8 × 6 are too small for model.pool 2 .* entry 3 leaves nothing"):
        build([objective("cnn", channels=[2, 2, 2, 2])], [1])
    build([objective("cnn", channels=[2, 2, 2, 2], pool=1)], [1])
    with pytest.raises(DataError, match=r"8 × 6 cannot be halved 4 times"):
        build([objective("resnet", channels=[2] * 5)], [1])
    build([objective("resnet", channels=[2] * 4)], [1])


def test_widest_layer() -> None:
    assert build([objective("mlp", hidden=[50, 7])], [1]).widest == 50
    assert build([objective("mlp", hidden=[50, 7], activation="maxout", pieces=3)], [1]).widest == 150
    assert build([objective("cnn")], [1]).widest == 8 * 6 * 3
    assert build([objective("resnet", channels=[2, 9])], [1]).widest == 4 * 3 * 9


@pytest.mark.parametrize("kind", MODELS)
def test_activities_name_every_activation_and_change_nothing(kind: str) -> None:
    keys: dict[str, Any] = {} if kind == "linear" else {"batch_norm": True, "dropout": 0.5}
    trials = members(kind, **keys)
    model = shaken(build(trials, SEEDS))
    before = [t.value.clone() for t in tensors(model)]
    activities = model.activities(minibatch())
    assert len(activities) == {"linear": 0, "mlp": 2, "cnn": 3, "resnet": 9}[kind]
    for value, tensor in zip(before, tensors(model), strict=True):
        assert torch.equal(value, tensor.value)
    for activity in activities:
        assert activity.mean.shape == activity.spread.shape == activity.dead.shape == activity.saturated.shape == (3,)
        assert (activity.spread > 0).all()
    if kind == "mlp":
        assert [activity.name for activity in activities] == ["layers.2", "layers.6"]
        # After batch norm a unit is about N(0, 1): its rectified half has the mean 1/sqrt(2 pi) = 0.4.
        assert activities[0].mean.tolist() == pytest.approx([0.4] * 3, abs=0.15)


def test_units_with_large_negative_biases_are_dead() -> None:
    model = build([objective("mlp", hidden=[4])] * 2, [1, 2])
    bias = model.parameters[1]
    bias.value[1, :3] = -1e6
    (activity,) = model.activities(minibatch(50))
    assert activity.dead.tolist() == [0.0, 0.75]


def test_model_key_holds_what_tensors_depend_on() -> None:
    base = objective("mlp")
    same = [
        objective("mlp", init="xavier", init_gain=2.0, slope=0.3, alpha=2.0, dropout=0.4, batch_norm_momentum=0.5),
        objective("mlp", pieces=4),
        base.with_params({"loss.label_smoothing": 0.1, "loss.margin": 2.0, "optimizer.lr": 0.5}),
    ]
    assert {model_key(o) for o in same} == {model_key(base)}
    assert model_key(objective("mlp", batch_norm=True)) == model_key(objective("mlp", batch_norm="before"))
    others = [
        objective("mlp", hidden=[7]),
        objective("mlp", activation="tanh"),
        objective("mlp", activation="maxout"),
        objective("mlp", activation="maxout", pieces=3),
        objective("mlp", batch_norm="before"),
        objective("mlp", batch_norm="after"),
        objective("mlp", loss="hinge"),
        objective("mlp", precision="bfloat16"),
        objective("linear"),
        objective("cnn"),
        objective("cnn", kernel=5),
        objective("resnet"),
    ]
    assert len({model_key(o) for o in [base, *others]}) == 13


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("init", ["he", "he_uniform", "xavier", "xavier_uniform", "orthogonal"])
def test_loss_starts_near_ln_c(kind: str, init: str) -> None:
    trials = [objective(kind, init=init)] * 8
    model = build(trials, range(8), n_outputs=10)
    scored = build_loss(trials, "cpu").score(model.forward(minibatch(100), training=True), torch.arange(100) % 10)
    # Scores of standard deviation 0.3 add 0.3² / 2 = 0.045; two residual blocks without batch norm about triple that.
    assert math.log(10) - 0.02 < float(scored.loss.mean()) / 100 < math.log(10) + 0.2


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_broken_member_harms_itself_alone(kind: str, broken: float) -> None:
    keys: dict[str, Any] = {} if kind == "linear" else {"batch_norm": True, "dropout": 0.3}
    trials, upstream = members(kind, **keys), torch.randn(3, N_CLASSES, 5, generator=seeded(1))
    whole, harmed = build(trials, SEEDS), build(trials, SEEDS)
    for parameter in harmed.parameters:
        parameter.value[1] = broken
    scores = [model.forward(minibatch(), training=True) for model in (whole, harmed)]
    for model in (whole, harmed):
        model.backward(upstream.clone())
    assert not scores[1][1].isfinite().all()
    torch.testing.assert_close(scores[1][[0, 2]], scores[0][[0, 2]])
    for one, other in zip(whole.parameters, harmed.parameters, strict=True):
        torch.testing.assert_close(other.grad[[0, 2]], one.grad[[0, 2]])
    for one_buffer, other_buffer in zip(whole.buffers, harmed.buffers, strict=True):
        torch.testing.assert_close(other_buffer.value[[0, 2]], one_buffer.value[[0, 2]])
