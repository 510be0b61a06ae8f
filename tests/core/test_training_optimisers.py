"""Optimisers: first steps by hand, further ones against torch.optim, every number per member."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from hpsearch.objective import TrainObjective
from hpsearch.training.layers import Parameter
from hpsearch.training.optimisers import LARGE, StackedOptimiser, build_optimiser, optimizer_key

KINDS = ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]
LRS = [0.1, 0.02, 0.5]
STEPS = 7


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def objective(kind: str = "sgd", penalties: dict[str, float] | None = None, **optimizer: Any) -> TrainObjective:
    document = {
        "kind": "train",
        "data": {"source": "digits"},
        "optimizer": {"kind": kind, **optimizer},
        "regularization": penalties or {},
    }
    return TrainObjective.model_validate(document)


def parameters(n_members: int, seed: int = 0) -> list[Parameter]:
    """A weight of 4 × 3 and a bias of 4 per member."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Parameter(torch.randn(n_members, 4, 3, generator=generator), penalised=True, name="weight"),
        Parameter(torch.randn(n_members, 4, 1, generator=generator), penalised=False, name="bias"),
    ]


def build(objectives: Sequence[TrainObjective], found: Sequence[Parameter], **keys: int) -> StackedOptimiser:
    settings = {"epochs": 10, "steps_per_epoch": 3, **keys}
    return build_optimiser(objectives, found, device="cpu", **settings)


def gradients(found: Sequence[Parameter], step: int, targets: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Of ½ |w − target|², whose gradients depend on the weights; every step draws its own noise."""
    generator = torch.Generator().manual_seed(step)
    noise = [torch.randn(p.value.shape[1:], generator=generator) for p in found]
    return [p.value - t + n for p, t, n in zip(found, targets, noise, strict=True)]


def step_once(
    optimiser: StackedOptimiser, found: Sequence[Parameter], grads: Sequence[torch.Tensor], step: int
) -> None:
    optimiser.set_step(step)
    optimiser.begin()
    for p, grad in zip(found, grads, strict=True):  # as a backward pass, linear in what it is given, would
        p.grad.add_(grad * optimiser.scale.view(-1, *[1] * (grad.dim() - 1)))
    optimiser.apply()


def run(optimiser: StackedOptimiser, found: Sequence[Parameter], targets: Sequence[torch.Tensor], steps: range) -> None:
    for step in steps:
        step_once(optimiser, found, gradients(found, step, targets), step)


# By hand --------------------------------------------------------------------------------------------------------------

# w = 2, g of the loss = 0.5, l2 = 0.1, so g = 0.7; lr = 0.1. The second step has the same gradient of the loss.
FIRST = {
    "sgd": 2 - 0.07,
    "momentum": 2 - 0.07,
    "nesterov": 2 - 0.1 * (0.7 + 0.9 * 0.7),
    "adagrad": 2 - 0.1,  # 0.7 / √0.49
    "rmsprop": 2 - 0.1 / 0.1,  # 0.7 / √(0.01 · 0.49)
    "adam": 2 - 0.1,  # the corrected mean over the root of the corrected square is the sign
    "adamw": 2 - 0.1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_by_hand(kind: str) -> None:
    found = [Parameter(torch.full((1, 1, 1), 2.0), penalised=True, name="w")]
    optimiser = build([objective(kind, {"l2": 0.1}, lr=0.1)], found)
    step_once(optimiser, found, [torch.full((1, 1, 1), 0.5)], 0)
    assert found[0].value.item() == pytest.approx(FIRST[kind], rel=1e-6)


def test_the_second_step_of_sgd_by_hand() -> None:
    """v₁ = −0.1 · (0.5 + 0.1 · 2) = −0.07, w₁ = 1.93; v₂ = 0.9 · −0.07 − 0.1 · (0.5 + 0.193) = −0.1323."""
    found = [Parameter(torch.full((1, 1, 1), 2.0), penalised=True, name="w")]
    optimiser = build([objective("sgd", {"l2": 0.1}, lr=0.1, momentum=0.9)], found)
    for step in range(2):
        step_once(optimiser, found, [torch.full((1, 1, 1), 0.5)], step)
    assert found[0].value.item() == pytest.approx(1.93 - 0.1323, rel=1e-6)


def test_sgd_keeps_the_rate_of_a_past_step_in_its_velocity() -> None:
    """lr 0.1, then 0.05: v₁ = −0.05, v₂ = 0.9 · −0.05 − 0.05 · 0.5 = −0.07 (cs231n; torch would step −0.0475)."""
    found = [Parameter(torch.full((1, 1, 1), 2.0), penalised=True, name="w")]
    optimiser = build([objective("sgd", lr=0.1, momentum=0.9, lr_decay=0.5)], found, steps_per_epoch=1)
    for step in range(2):
        step_once(optimiser, found, [torch.full((1, 1, 1), 0.5)], step)
    assert found[0].value.item() == pytest.approx(2 - 0.05 - 0.07, rel=1e-6)


def test_decoupled_decay_and_l1_by_hand() -> None:
    """(1 − 0.1 · 0.3) · 2 − 0.1 · (0.5 + 0.2 · sign(2)); the bias takes part in neither; sign(0) = 0."""
    found = [
        Parameter(torch.tensor([[[2.0], [-2.0], [0.0]]]), penalised=True, name="w"),
        Parameter(torch.tensor([[[2.0]]]), penalised=False, name="b"),
    ]
    o = objective("sgd", {"l1": 0.2, "weight_decay": 0.3}, lr=0.1, momentum=0)
    step_once(build([o], found), found, [torch.full((1, 3, 1), 0.5), torch.full((1, 1, 1), 0.5)], 0)
    assert found[0].value.flatten().tolist() == pytest.approx([1.94 - 0.07, -1.94 - 0.03, -0.05])
    assert found[1].value.item() == pytest.approx(1.95)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_penalty_by_hand(kind: str) -> None:
    """½ · 0.1 · (9 + 16) + 0.5 · (3 + 4); the second member has none; the bias counts in neither."""
    found = [
        Parameter(torch.tensor([[[3.0, -4.0]], [[1.0, 1.0]]]), penalised=True, name="w"),
        Parameter(torch.ones(2, 1, 1), penalised=False, name="b"),
    ]
    both = [objective(kind, {"l2": 0.1, "l1": 0.5}), objective(kind, {"l1": 1e-30})]
    assert build(both, found).penalty().tolist() == pytest.approx([1.25 + 3.5, 0.0])
    plain = [objective(kind, {"l2": 0.1}), objective(kind, {"l2": 2.0})]
    assert build(plain, found).penalty().tolist() == pytest.approx([1.25, 2.0])


def test_clipping_by_hand() -> None:
    """The norm of (3, 4) is 5: clipped to 1 it is (0.6, 0.8). The other members' norms are under theirs, or free."""
    found = [
        Parameter(torch.zeros(3, 1, 1), penalised=True, name="w"),
        Parameter(torch.zeros(3, 1, 1), penalised=False, name="b"),
    ]
    clipped = [objective("sgd", lr=1.0, clip_norm=clip) for clip in (1.0, 6.0)]
    free = objective("sgd", {"l1": 1e-30}, lr=1.0)
    step_once(build([*clipped, free], found), found, [torch.full((3, 1, 1), 3.0), torch.full((3, 1, 1), 4.0)], step=0)
    assert found[0].value.flatten().tolist() == pytest.approx([-0.6, -3.0, -3.0])
    assert found[1].value.flatten().tolist() == pytest.approx([-0.8, -4.0, -4.0])


# Against torch.optim --------------------------------------------------------------------------------------------------

Make = Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]

TORCH: dict[str, tuple[dict[str, Any], Make]] = {
    "sgd": ({"momentum": 0.9}, lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9)),
    "momentum": ({"momentum": 0.5}, lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.5)),
    "nesterov": ({"momentum": 0.8}, lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.8, nesterov=True)),
    "adagrad": ({"epsilon": 1e-4}, lambda groups, lr: torch.optim.Adagrad(groups, lr=lr, eps=1e-4)),
    "rmsprop": ({"rho": 0.8}, lambda groups, lr: torch.optim.RMSprop(groups, lr=lr, alpha=0.8)),
    "adam": (
        {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-3},
        lambda groups, lr: torch.optim.Adam(groups, lr=lr, betas=(0.8, 0.99), eps=1e-3),
    ),
    "adamw": ({}, lambda groups, lr: torch.optim.AdamW(groups, lr=lr, weight_decay=0)),
}


def reference(
    kind: str, lr: float, member: int, *, l2: float = 0.0, clip: float | None = None, decay: float = 0.0
) -> list[torch.Tensor]:
    """Weights of one member after :data:`STEPS` steps with torch.optim, l2 as its ``weight_decay`` of the weight."""
    found, targets = parameters(3), [p.value for p in parameters(3, seed=1)]
    own = [torch.nn.Parameter(p.value[member].clone()) for p in found]
    goals = [t[member] for t in targets]
    groups = [{"params": [own[0]], "weight_decay": l2 or decay}, {"params": [own[1]], "weight_decay": 0.0}]
    optimiser = TORCH[kind][1](groups, lr)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for w, goal in zip(own, goals, strict=True):
            w.grad = (w - goal + torch.randn(w.shape, generator=generator)).detach()
        if clip is not None:
            clip_grad_norm_(own, clip)
        optimiser.step()
    return [w.detach() for w in own]


@pytest.mark.parametrize(
    ("kind", "l2"), [(kind, l2) for kind in KINDS for l2 in (0.0, 0.3) if (kind, l2) != ("adamw", 0.3)]
)
def test_every_step_equals_that_of_torch(kind: str, l2: float) -> None:
    """But AdamW with a penalty in the gradient, which torch has not."""
    objectives = [objective(kind, {"l2": l2}, lr=lr, **TORCH[kind][0]) for lr in LRS]
    found, targets = parameters(3), [p.value for p in parameters(3, seed=1)]
    run(build(objectives, found), found, targets, range(STEPS))
    for k, lr in enumerate(LRS):
        for p, expected in zip(found, reference(kind, lr, k, l2=l2), strict=True):
            torch.testing.assert_close(p.value[k], expected, rtol=2e-5, atol=2e-6)


def test_weight_decay_of_adamw_is_that_of_torch() -> None:
    decays = [0.0, 0.1, 0.9]
    objectives = [objective("adamw", {"weight_decay": d}, lr=lr) for d, lr in zip(decays, LRS, strict=True)]
    found, targets = parameters(3), [p.value for p in parameters(3, seed=1)]
    run(build(objectives, found), found, targets, range(STEPS))
    for k, (decay, lr) in enumerate(zip(decays, LRS, strict=True)):
        for p, expected in zip(found, reference("adamw", lr, k, decay=decay), strict=True):
            torch.testing.assert_close(p.value[k], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_equals_that_of_torch(kind: str) -> None:
    clips = [0.5, 2.0, 1e9]
    objectives = [objective(kind, lr=lr, clip_norm=clip, **TORCH[kind][0]) for lr, clip in zip(LRS, clips, strict=True)]
    found, targets = parameters(3), [p.value for p in parameters(3, seed=1)]
    run(build(objectives, found), found, targets, range(STEPS))
    for k, (lr, clip) in enumerate(zip(LRS, clips, strict=True)):
        for p, expected in zip(found, reference(kind, lr, k, clip=clip), strict=True):
            torch.testing.assert_close(p.value[k], expected, rtol=2e-5, atol=1e-5)


# Packs ----------------------------------------------------------------------------------------------------------------


def mixed(kind: str, *, linear: bool) -> list[TrainObjective]:
    """Four members that differ in every number, schedules too."""
    schedules = [
        {"kind": "constant", "warmup_epochs": 1.5},
        {"kind": "cosine", "final": 0.1},
        {"kind": "step", "step_epochs": 1, "factor": 0.5},
        {"kind": "one_cycle", "final": 0.2},
    ]
    return [
        objective(
            kind,
            {"l2": 0.1 * k, "weight_decay": 0.05 * k, "l1": 0 if linear else 0.01 * (k + 1)},
            lr=0.02 * (k + 1),
            momentum=0.3 * k,
            rho=0.8 + 0.05 * k,
            beta1=0.2 * k,
            beta2=0.9 + 0.02 * k,
            epsilon=10.0 ** (-k - 2),
            lr_decay=1 - 0.1 * k,
            schedule=schedule,
            clip_norm=None if linear else 1.0 + k,
        )
        for k, schedule in enumerate(schedules)
    ]


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_member_of_a_pack_equals_the_member_alone_whoever_leaves(kind: str, linear: bool) -> None:
    objectives = mixed(kind, linear=linear)
    found, targets = parameters(4), [p.value for p in parameters(4, seed=1)]
    optimiser = build(objectives, found)
    run(optimiser, found, targets, range(5))
    rows = torch.tensor([3, 1])
    for p in found:
        p.keep(rows)
    optimiser.keep(rows)
    run(optimiser, found, [t[rows] for t in targets], range(5, 10))
    for row, member in enumerate(rows.tolist()):
        one = slice(member, member + 1)
        alone = [Parameter(p.value[one].clone(), penalised=p.penalised, name=p.name) for p in parameters(4)]
        run(build(objectives[one], alone), alone, [t[one] for t in targets], range(10))
        for p, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(p.value[row], expected.value[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_a_state_gives_the_same_bits(kind: str, linear: bool) -> None:
    objectives = mixed(kind, linear=linear)
    found, targets = parameters(4), [p.value for p in parameters(4, seed=1)]
    optimiser = build(objectives, found)
    run(optimiser, found, targets, range(6))
    saved = {name: tensor.clone() for name, tensor in optimiser.state.items()}
    resumed = [Parameter(p.value.clone(), penalised=p.penalised, name=p.name) for p in found]
    run(optimiser, found, targets, range(6, 12))
    again = build(objectives, resumed)
    again.load(saved)
    run(again, resumed, targets, range(6, 12))
    for p, expected in zip(resumed, found, strict=True):
        assert torch.equal(p.value, expected.value)


def test_names_of_a_state() -> None:
    assert list(build([objective("sgd")], parameters(1)).state) == ["velocity.weight", "velocity.bias"]
    names = ["mean.weight", "squares.weight", "mean.bias", "squares.bias"]
    assert list(build([objective("adam")], parameters(1)).state) == names


def test_a_state_of_another_optimiser_is_refused() -> None:
    adam, sgd = build([objective("adam")], parameters(1)), build([objective("sgd")], parameters(1))
    with pytest.raises(ValueError, match=r"mean.bias, .*velocity.weight"):
        sgd.load(adam.state)
    with pytest.raises(ValueError, match=r"velocity.weight has the shape \(2, 4, 3\), not \(1, 4, 3\)"):
        sgd.load(build([objective("sgd")] * 2, parameters(2)).state)


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adam"])
def test_large_parameters_are_updated_alike(kind: str) -> None:
    """Member by member in one, all at once in the other: the same numbers."""
    objectives = [objective(kind, {"l2": 0.1 * k, "weight_decay": 0.1}, lr=0.1 * (k + 1)) for k in range(2)]
    large = [Parameter(torch.ones(2, LARGE), penalised=True, name="w")]
    small = [Parameter(torch.ones(2, 8), penalised=True, name="w")]
    for found in (large, small):
        optimiser = build(objectives, found)
        for step in range(3):
            step_once(optimiser, found, [found[0].value * 0.5], step)
    torch.testing.assert_close(large[0].value[:, :8], small[0].value, rtol=1e-6, atol=0)


# Keys -----------------------------------------------------------------------------------------------------------------


def test_members_of_one_key_may_differ_in_every_number() -> None:
    for kind in KINDS:
        for linear in (True, False):
            assert len({optimizer_key(o) for o in mixed(kind, linear=linear)}) == 1
    assert optimizer_key(objective("sgd")) == optimizer_key(objective("momentum"))
    assert optimizer_key(objective("sgd")) != optimizer_key(objective("nesterov"))
    assert optimizer_key(objective("sgd")) != optimizer_key(objective("sgd", clip_norm=1.0))


def test_members_of_several_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="one kind of optimiser, not 2"):
        build([objective("sgd"), objective("adam")], parameters(2))


# Measuring ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_step_is_the_same_step(kind: str) -> None:
    objectives = mixed(kind, linear=True)
    measured, plain = parameters(4), parameters(4)
    targets = [p.value for p in parameters(4, seed=1)]
    one, other = build(objectives, measured), build(objectives, plain)
    for step in range(6):
        one.set_step(step)
        one.begin(measure=step % 2 == 1)
        for p, grad in zip(measured, gradients(measured, step, targets), strict=True):
            p.grad.add_(grad * one.scale)
        one.apply()
    run(other, plain, targets, range(6))
    for p, expected in zip(measured, plain, strict=True):
        torch.testing.assert_close(p.value, expected.value, rtol=1e-5, atol=1e-6)
    for name, tensor in one.state.items():
        torch.testing.assert_close(tensor, other.state[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 2.5])
def test_what_is_measured_by_hand(clip: float | None) -> None:
    """Weights (3, 4) and g = (0, 3) + 1 · w = (3, 7), a bias with g = 2: norm √62. The step is 0.1 · g, |w| is 5."""
    found = [
        Parameter(torch.tensor([[[3.0, 4.0]]]), penalised=True, name="w"),
        Parameter(torch.tensor([[[1.0]]]), penalised=False, name="b"),
    ]
    optimiser = build([objective("sgd", {"l2": 1.0}, lr=0.1, clip_norm=clip)], found)
    optimiser.begin(measure=True)
    for p, grad in zip(found, [torch.tensor([[[0.0, 3.0]]]), torch.tensor([[[2.0]]])], strict=True):
        p.grad.add_(grad * optimiser.scale)
    optimiser.apply()
    assert optimiser.gradient_norm().tolist() == pytest.approx([62**0.5])
    ((name, ratio),) = optimiser.updates()
    assert name == "w"
    factor = 1 if clip is None else clip / 62**0.5
    assert ratio.tolist() == pytest.approx([0.1 * factor * 58**0.5 / 5])


def test_measured_numbers_follow_the_members() -> None:
    found = parameters(3)
    optimiser = build([objective("sgd", lr=lr) for lr in LRS], found)
    optimiser.begin(measure=True)
    for p in found:
        p.grad.add_(p.value * optimiser.scale)
    optimiser.apply()
    optimiser.keep(torch.tensor([2, 0]))
    assert optimiser.updates()[0][1].tolist() == pytest.approx([0.5, 0.1])
    assert optimiser.gradient_norm().shape == (2,)


def test_nothing_measured_is_an_error() -> None:
    optimiser = build([objective("sgd")], parameters(1))
    with pytest.raises(ValueError, match="measure=True"):
        optimiser.gradient_norm()
    with pytest.raises(ValueError, match="measure=True"):
        optimiser.updates()
