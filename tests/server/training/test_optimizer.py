"""Optimizers of the server: the numbers of torch and of the papers, bounds, state, settings."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varangian.aggregators import AggregationError
from varangian.config import load
from varangian.registry import ConfigError
from varangian.server.training.optimizers import (
    OPTIMIZERS,
    Adam,
    Bounds,
    NormalizedSgd,
    Optimizer,
    Sgd,
    Stepper,
)
from varangian.server.training.parameters import norm
from varangian.server.training.schedules import Cosine, Exponential

FUSED = {"fused": True}
OF_TORCH = [
    ({"name": "sgd", "lr": 0.3}, torch.optim.SGD, {"lr": 0.3}),
    *(
        (
            {"name": "sgd", "lr": 0.3, "momentum": 0.9, "nesterov": nesterov, "weight_decay": decay},
            torch.optim.SGD,
            {"lr": 0.3, "momentum": 0.9, "nesterov": nesterov, "weight_decay": decay},
        )
        for nesterov in (False, True)
        for decay in (0.0, 0.01)
    ),
    ({"name": "adam"}, torch.optim.Adam, FUSED),
    (
        {"name": "adam", "lr": 0.1, "betas": [0.5, 0.9], "amsgrad": True, "weight_decay": 0.1},
        torch.optim.Adam,
        {"lr": 0.1, "betas": (0.5, 0.9), "amsgrad": True, "weight_decay": 0.1, **FUSED},
    ),
    ({"name": "adamw"}, torch.optim.AdamW, FUSED),
    ({"name": "adagrad", "lr_decay": 0.1}, torch.optim.Adagrad, {"lr_decay": 0.1, **FUSED}),
    ({"name": "rmsprop", "momentum": 0.5}, torch.optim.RMSprop, {"momentum": 0.5}),
    ({"name": "rmsprop", "centered": True}, torch.optim.RMSprop, {"centered": True}),
    (
        {"name": "sgd", "lr": 0.3, "momentum": 0.9, "dampening": 0.5},
        torch.optim.SGD,
        {"momentum": 0.9, "dampening": 0.5},
    ),
    ({"name": "adamax", "weight_decay": 0.1}, torch.optim.Adamax, {"weight_decay": 0.1}),
    (
        {"name": "nadam", "weight_decay": 0.1, "decoupled_weight_decay": True},
        torch.optim.NAdam,
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    ({"name": "radam", "betas": [0.5, 0.6]}, torch.optim.RAdam, {"betas": (0.5, 0.6)}),
    ({"name": "adadelta", "rho": 0.5}, torch.optim.Adadelta, {"rho": 0.5}),
    ({"name": "asgd", "lambd": 0.1, "t0": 1.0}, torch.optim.ASGD, {"lambd": 0.1, "t0": 1.0}),
    ({"name": "rprop", "etas": [0.4, 1.5]}, torch.optim.Rprop, {"etas": (0.4, 1.5)}),
]
NAMES = [name for name in OPTIMIZERS if not OPTIMIZERS.entry(name)[0].shaped]
ALL = [{"name": name} for name in NAMES] + [options for options, _, _ in OF_TORCH]
BOUNDED = ("normalized_sgd", "rprop", "asgd")
"""Their steps do not follow the length of the gradient, or not the learning rate of the same round."""
ALL += [{"name": "normalized_sgd", "momentum": 0.9}]


def built(options: dict) -> Optimizer:
    return load(overrides=[f"optimizer={options}".replace("'", "").replace("True", "true")]).optimizer


def stepped(stepper: Stepper, point: torch.Tensor, gradient: torch.Tensor, lr: float) -> torch.Tensor:
    out = torch.full_like(point, math.nan)
    stepper.step(point, gradient, norm(gradient) or 0.0, lr, out)
    return out


# Steps


@pytest.mark.parametrize(("options", "kind", "theirs"), OF_TORCH)
def test_steps_are_those_of_torch_to_the_bit(options, kind, theirs):
    optimizer = built(options)
    place = torch.nn.Parameter(torch.randn(70_001))
    reference, point = kind([place], **{"lr": optimizer.lr} | theirs), place.detach().clone()
    stepper = Stepper(optimizer, len(point))
    for _ in range(4):
        place.grad = torch.randn(len(point))
        before = point.clone(), place.grad.clone()
        out = stepped(stepper, point, place.grad, optimizer.lr)
        assert torch.equal(point, before[0])
        assert torch.equal(place.grad, before[1])
        reference.step()
        point = out
        assert torch.equal(point, place.detach())


@pytest.mark.parametrize("variant", ["fedadagrad", "fedadam", "fedyogi"])
def test_fedopt_by_hand(variant: str):
    optimizer = built({"name": variant, "lr": 0.5, "momentum": 0.6, "tau": 0.1})
    stepper, x, m, v = Stepper(optimizer, 2), torch.ones(2), 0.0, 0.01
    value = 1.0
    for g in (2.0, -0.5, 0.01):
        x = stepped(stepper, x, torch.full((2,), g), 0.5)
        m = 0.6 * m + 0.4 * g
        match variant:
            case "fedadagrad":
                v += g * g
            case "fedadam":
                v = 0.99 * v + 0.01 * g * g
            case "fedyogi":
                v -= 0.01 * g * g * math.copysign(1, v - g * g)
        value -= 0.5 * m / (math.sqrt(v) + 0.1)
        assert x.tolist() == pytest.approx([value, value], rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_a_normalised_step_is_as_long_as_the_learning_rate(scale: float):
    stepper, point = Stepper(NormalizedSgd(), 2), torch.tensor([1.0, 2.0])
    found = stepped(stepper, point, torch.tensor([3.0, -4.0]) * scale, 0.5)
    assert found.tolist() == pytest.approx([0.7, 2.4], rel=1e-6)
    assert torch.equal(stepped(stepper, point, torch.zeros(2), 0.5), point)


def test_a_normalised_step_along_an_aggregate_longer_than_any_float32():
    gradient = torch.full((4,), 3e38)
    found = stepped(Stepper(NormalizedSgd(), 4), torch.zeros(4), gradient, 1.0)
    assert found.tolist() == pytest.approx([-0.5] * 4, rel=1e-6)


def test_a_normalised_step_along_a_mean_by_hand():
    stepper, x = Stepper(NormalizedSgd(momentum=0.5), 2), torch.zeros(2)
    x = stepped(stepper, x, torch.tensor([2.0, 0.0]), 1.0)
    assert x.tolist() == [-1.0, 0.0]
    x = stepped(stepper, x, torch.tensor([0.0, 1.0]), 1.0)  # the mean is (0.5, 0.5)
    assert x.tolist() == pytest.approx([-1 - math.sqrt(0.5), -math.sqrt(0.5)], rel=1e-6)
    kept = stepper.state()["mean"].clone()
    with pytest.raises(AggregationError, match="would make the parameters infinite"):
        stepped(stepper, torch.full((2,), 3.4e38), torch.tensor([-1.0, -1.0]), 1e38)
    assert torch.equal(stepper.state()["mean"], kept)


@pytest.mark.parametrize("options", ALL)
def test_a_run_that_is_resumed_takes_the_same_steps(options):
    optimizer, generator = built(options), torch.Generator().manual_seed(3)
    gradients = torch.randn(6, 50, generator=generator)
    through, point = Stepper(optimizer, 50), torch.ones(50)
    for gradient in gradients[:3]:
        point = stepped(through, point, gradient, 0.1)
    kept = [value for value in through.state().values() if isinstance(value, torch.Tensor) and value.dim()]
    assert len(kept) <= optimizer.vectors
    resumed, other = Stepper(optimizer, 50), point.clone()
    resumed.restore(through.state())
    for gradient in gradients[3:]:
        point, other = stepped(through, point, gradient, 0.1), stepped(resumed, other, gradient, 0.1)
        assert torch.equal(point, other)


@pytest.mark.exhaustive
def test_no_optimizer_imports_the_compiler_of_torch():
    """It takes longer than all the rest of a start, and 150 MB."""
    code = """
import sys
import torch
from varangian.config import load
from varangian.server.training.optimizers import *
def step(optimizer):
    x = torch.ones(4)
    stepper_for(optimizer, x, [(2, 2)]).step(x, x, 2.0, optimizer.rate(1, 3), x.clone())
for name in set(OPTIMIZERS) - {"own"}:
    settings = f"optimizer={{name: {name}, schedule: {{exponential: {{gamma: 0.9}}}}}}"
    step(load(overrides=[settings]).optimizer)
step(OwnOptimizer.of(lambda ps: torch.optim.AdamW(ps, 0.1), [(2, 2)],
    scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 3)))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Bounds


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    options=st.sampled_from(ALL),
    scale=st.sampled_from([1e-3, 1.0, 1e14]),
    lr=st.sampled_from([1e-3, 0.7]),
)
def test_no_step_leaves_the_bounds(seed: int, options: dict, scale: float, lr: float):
    optimizer, generator = built(options), torch.Generator().manual_seed(seed)
    point, stepper = torch.randn(5, generator=generator), Stepper(optimizer, 5)
    bounds = Bounds(norm(point) or 0.0)
    for _ in range(6):
        gradient = scale * torch.randn(5, generator=generator)
        bounds = optimizer.after(bounds, norm(gradient) or 0.0, lr)
        point = stepped(stepper, point, gradient, lr)
        assert (norm(point) or 0.0) <= bounds.point * (1 + 1e-6)


def test_a_straight_line_meets_the_bound():
    assert Sgd(lr=0.5).after(Bounds(1.0), 2.0, 0.5) == Bounds(2.0)
    assert Sgd(lr=0.5, momentum=0.5).after(Bounds(1.0), 2.0, 0.5).memory == 2.0


@pytest.mark.parametrize("options", [o for o in ALL if o["name"] not in BOUNDED])
def test_a_step_that_would_overflow_changes_nothing(options):
    optimizer = built(options)
    stepper, point = Stepper(optimizer, 3), torch.ones(3)
    point = stepped(stepper, point, torch.ones(3), 0.1)
    before = {name: torch.as_tensor(value).clone() for name, value in stepper.state().items()}
    with pytest.raises(AggregationError, match="The step would make the parameters infinite"):
        stepped(stepper, point, torch.full((3,), 3e38), 1e38)
    after = stepper.state()
    assert after.keys() == before.keys()
    assert all(torch.equal(torch.as_tensor(after[name]), before[name]) for name in before)
    assert stepped(stepper, point, torch.ones(3), 0.1).isfinite().all()


# Settings


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_defaults_are_those_of_torch(name: str):
    optimizer = OPTIMIZERS.build(name, "")
    if name == "muon":
        theirs = torch.optim.Muon([torch.zeros(1, 1)]).defaults
        assert {name: getattr(optimizer, name) for name in theirs} == theirs
        return
    if not hasattr(optimizer, "kind") or name == "sgd":
        return
    theirs = optimizer.kind([torch.zeros(1)]).defaults
    assert {k: v for k, v in vars(optimizer).items() if k in theirs} == {
        k: theirs[k] for k in vars(optimizer) if k in theirs
    }


def test_the_rate_of_a_round():
    assert [Sgd(lr=2.0, schedule=Cosine()).rate(r, 4) for r in (0, 2)] == pytest.approx([2.0, 1.0])
    warm = Sgd(lr=1.0, warmup=4, schedule=Cosine())
    rates = [warm.rate(r, 8) for r in range(8)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[5:] == pytest.approx([Cosine().factor(r, 4) for r in (1, 2, 3)])
    assert Sgd(lr=0.1, schedule=Exponential(gamma=0.5)).rate(2, 5) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 0.0}, "`lr` should be a positive number. Found 0.0."),
        ({"lr": math.nan}, "`lr` should be a positive number. Found nan."),
        ({"momentum": 1.0}, "`momentum` should be at least 0 and below 1. Found 1.0."),
        ({"weight_decay": -1.0}, "`weight_decay` should not be negative. Found -1.0."),
        ({"warmup": -1}, "`warmup` should not be negative. Found -1."),
        ({"nesterov": True}, "`momentum` should be above 0 with `nesterov`. Found 0."),
    ],
)
def test_impossible_values_are_refused(options, sentence: str):
    with pytest.raises(ValueError, match="should") as error:
        Sgd(**options)
    assert str(error.value) == sentence


def test_each_of_several_numbers_is_checked():
    with pytest.raises(ValueError, match=r"`betas` should be at least 0 and below 1. Found 1.5."):
        Adam(betas=(0.9, 1.5))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "optimizer=amad",
            "optimizer.name: there is no optimizer of this name. Found 'amad'. Did you mean 'ada",
        ),
        ("optimizer=3", "optimizer: should be a mapping of settings to values. Found 3."),
        (
            "optimizer.momentun=1",
            "optimizer.momentun: there is no such setting. Found 1. Did you mean 'mom",
        ),
        ("optimizer.batch_size=1", "Did you mean 'worker.batch_size'?"),
        ("optimizer={adam: 1}", "Write `name: adam`, and its settings beside it or below its name."),
        ("optimizer={adam: {}, sgd: {}}", "optimizer.adam: there is no such setting"),
        (
            "optimizer={adam: {lr: 1, beta: 2}}",
            "optimizer.beta: there is no such setting. Found 2. Did you mean",
        ),
        ("optimizer={name: adam, momentum: 0.5}", "Found 0.5. Known: amsgrad, betas, eps, lr, schedule"),
        ("optimizer={name: adam, betas: [0.9]}", "optimizer.betas: should be a list of 2 (a number each)."),
        (
            "optimizer={name: adam, betas: [0.9, 1.5]}",
            "optimizer.betas.1: should be less than 1. Found 1.5.",
        ),
        ("optimizer={name: adam, eps: 0}", "optimizer.eps: should be greater than 0. Found 0."),
    ],
)
def test_what_a_configuration_may_not_say(override: str, sentence: str):
    with pytest.raises(ConfigError) as error:
        load(overrides=[override])
    assert sentence in str(error.value)


def test_a_name_and_settings_on_the_command_line():
    config = load(overrides=["optimizer=adam", "optimizer.lr=0.1", "optimizer.schedule.cosine.final=0.1"])
    assert config.optimizer == OPTIMIZERS.build(
        {"adam": {"lr": 0.1, "schedule": {"cosine": {"final": 0.1}}}}, ""
    )
    assert config.resolved()["optimizer"] | {"lr": 0.1, "name": "adam"} == config.resolved()["optimizer"]
