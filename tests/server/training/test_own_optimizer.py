"""Optimizers and schedulers of a program, and named ones that see shapes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from varangian import state_file
from varangian.aggregators import AggregationError, Aggregator, Mean
from varangian.config import load
from varangian.plugins import InputError
from varangian.registry import ConfigError
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import (
    OPTIMIZERS,
    Adam,
    FedAdam,
    Muon,
    OwnOptimizer,
    Sgd,
    ShapedStepper,
    stepper_for,
)
from varangian.server.training.schedules import Cosine

SHAPES = [(3, 4), (4,), (2, 3, 2, 2), ()]
D = sum(math.prod(shape) for shape in SHAPES)
ROUNDS = 8


def groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "weight_decay": 0.5}], lr=0.01
    )


def both(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    return [torch.optim.Muon(parameters[:1], 0.1), torch.optim.SGD(parameters[1:], 0.1, momentum=0.5)]


FACTORIES = {
    "groups": groups,
    "muon and sgd": both,
    "adafactor": lambda ps: torch.optim.Adafactor(ps, 0.1),
    "lr as a tensor": lambda ps: torch.optim.Adam(ps, torch.tensor(0.1), foreach=False, capturable=False),
    "asgd": lambda ps: torch.optim.ASGD(ps, 0.1, t0=2),
}
SCHEDULERS = {
    "none": None,
    "lambda": lambda o: lrs.LambdaLR(o, lambda epoch: 0.8**epoch),
    "multi step": lambda o: lrs.MultiStepLR(o, [2, 5], 0.1),
    "one cycle": lambda o: lrs.OneCycleLR(o, 0.3, total_steps=ROUNDS, cycle_momentum=False),
    "cyclic": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    "sequential": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, 1.0, 3), lrs.CosineAnnealingLR(o, 5)], [3]
    ),
    "chained": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.5, 2), lrs.ExponentialLR(o, 0.9)]),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0, threshold=0.0),
}
LOSSES = [1.0, 2.0, 0.5, 0.4, 0.6, 0.7, 0.3, 0.2]


def learner(optimizer, start, *, rounds=ROUNDS) -> Learner:
    return Learner(start, Aggregator(Mean()), optimizer, rounds=rounds, seed=1, shapes=SHAPES)


def gradients(count: int = ROUNDS) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(5))


def views(vector: torch.Tensor) -> list[torch.Tensor]:
    parts = vector.split([math.prod(shape) for shape in SHAPES])
    return [part.view(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def train(factory, scheduler, start: torch.Tensor) -> torch.Tensor:
    """A plain loop."""
    parameters = [nn.Parameter(view.clone()) for view in views(start)]
    found = factory(parameters)
    optimizers = found if isinstance(found, list) else [found]
    schedulers = [] if scheduler is None else [scheduler(one) for one in optimizers]
    for gradient, loss in zip(gradients(), LOSSES, strict=True):
        for parameter, slope in zip(parameters, views(gradient), strict=True):
            parameter.grad = slope.clone()
        for one in optimizers:
            one.step()
        for one in schedulers:
            one.step(loss) if isinstance(one, lrs.ReduceLROnPlateau) else one.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def go(learner: Learner, first: int, last: int) -> list[float]:
    rates = []
    for round in range(first, last):
        rates.append(learner.step(round, {"w": gradients()[round]}, {}).lr)
        learner.scored({"loss": LOSSES[round], "accuracy": 0.5})
    return rates


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@pytest.mark.parametrize("factory", list(FACTORIES))
def test_steps_are_those_of_a_plain_loop_to_the_bit_also_when_resumed(
    factory: str, scheduler: str, tmp_path: Path
):
    if factory == "lr as a tensor" and scheduler in ("one cycle", "cyclic"):
        pytest.skip("torch takes no tensor there")
    start = torch.randn(D)
    make, schedule = FACTORIES[factory], SCHEDULERS[scheduler]
    own = OwnOptimizer.of(make, SHAPES, scheduler=schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        through = learner(own, start)
        go(through, 0, ROUNDS // 2)
        plain, tensors = state_file.flatten(through.state())
        state_file.write(tmp_path / "kept", {"state": plain}, tensors)
        read = state_file.read(tmp_path / "kept")
        resumed = learner(OwnOptimizer.of(make, SHAPES, scheduler=schedule), torch.zeros(D))
        resumed.restore(state_file.unflatten(read.plain["state"], read.tensors))
        rates = go(through, ROUNDS // 2, ROUNDS)
        assert go(resumed, ROUNDS // 2, ROUNDS) == rates
    expected = train(make, schedule, start)
    assert torch.equal(through.parameters, expected)
    assert torch.equal(resumed.parameters, expected)
    kept = sum(t.numel() for name, t in tensors.items() if "/parameters/" in name)
    assert own.vectors >= kept / D


def test_rounds_without_an_update_count_for_the_scheduler():
    own = OwnOptimizer.of(
        lambda ps: torch.optim.SGD(ps, 1.0), SHAPES, scheduler=lambda o: lrs.ExponentialLR(o, 0.5)
    )
    one = learner(own, torch.zeros(D))
    assert [one.step(round, {"w": torch.ones(D)}, {}).lr for round in (0, 3)] == [1.0, 0.125]


def test_a_named_schedule_scales_all_groups():
    own = OwnOptimizer.of(groups, SHAPES, schedule=Cosine(), warmup=2)
    assert (own.lr, own.optimizer, own.scheduler) == (0.1, "AdamW", "")
    one = learner(own, torch.zeros(D), rounds=6)
    assert go(one, 0, 1) == [0.05]
    found = one.state()["optimizer"]["optimizers"][0]["groups"]
    assert [group["lr"] for group in found] == [0.05, 0.005]


@pytest.mark.parametrize("named", [Adam(lr=0.1), FedAdam(lr=0.1), Muon(lr=0.1), Sgd(lr=0.1, momentum=0.9)])
def test_a_scheduler_of_a_program_for_a_named_optimizer(named):
    own = OwnOptimizer.of(named, SHAPES, scheduler=lambda o: lrs.ConstantLR(o, 1.0, 1))
    start = torch.randn(D)
    with_scheduler, without = learner(own, start), learner(named, start)
    assert go(with_scheduler, 0, 4) == go(without, 0, 4)
    assert torch.equal(with_scheduler.parameters, without.parameters)


def test_a_plateau_follows_the_accuracy_where_more_is_better():
    own = OwnOptimizer.of(
        lambda ps: torch.optim.SGD(ps, 1.0),
        SHAPES,
        scheduler=lambda o: lrs.ReduceLROnPlateau(o, mode="max", patience=0),
    )
    assert own.scheduler == "ReduceLROnPlateau"
    one, rates = learner(own, torch.zeros(D)), []
    for round, accuracy in enumerate([0.5, 0.6, 0.6, 0.7]):
        rates.append(one.step(round, {"w": torch.ones(D)}, {}).lr)
        one.scored({"loss": -round, "accuracy": accuracy})
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.1])


# What cannot be used


def closures(ps):
    return torch.optim.LBFGS(ps)


def elsewhere(ps):
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1)


class Keeps(torch.optim.SGD):
    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["set"] = {1, 2}


@pytest.mark.parametrize(
    ("factory", "scheduler", "sentence"),
    [
        (closures, None, "`optimizer` should need no closure.*Found LBFGS"),
        (lambda ps: torch.optim.SparseAdam(ps), None, "step of `optimizer` SparseAdam failed.*dense"),
        (lambda ps: torch.optim.Muon(ps), None, "`optimizer` failed: ValueError: Muon only supports 2D"),
        (lambda ps: None, None, "`optimizer` should return an optimizer of `torch.optim`. Found NoneType."),
        (elsewhere, None, "should step the parameters that it is called with"),
        (lambda ps: 1 / 0, None, "`optimizer` failed: ZeroDivisionError"),
        (lambda ps: Keeps(ps, 0.1), None, r"should keep numbers, text and tensors.*Found set \(set\)"),
        (groups, lambda o: o.lr, "`schedule` failed: AttributeError"),
        (groups, lambda o: 3, "`schedule` should return a scheduler of .* Found int."),
    ],
)
def test_what_a_program_may_not_give(factory, scheduler, sentence: str):
    with pytest.raises(InputError, match=sentence):
        OwnOptimizer.of(factory, SHAPES, scheduler=scheduler)


def test_a_scheduler_and_a_named_schedule():
    with pytest.raises(InputError, match="a function or a named schedule"):
        OwnOptimizer.of(groups, SHAPES, scheduler=SCHEDULERS["lambda"], schedule=Cosine())


def test_a_scheduler_that_ends_before_the_run_fails_with_a_sentence():
    own = OwnOptimizer.of(groups, SHAPES, scheduler=lambda o: lrs.OneCycleLR(o, 0.1, total_steps=2))
    one = learner(own, torch.zeros(D))
    go(one, 0, 3)
    with pytest.raises(InputError, match="`schedule` OneCycleLR after 3 rounds failed"):
        go(one, 3, 4)


def test_the_optimizer_of_a_program_cannot_be_named_in_a_file():
    own = OwnOptimizer.of(groups, SHAPES, scheduler=SCHEDULERS["lambda"])
    spec = OPTIMIZERS.spec(own)
    assert spec["own"] | {"lr": 0.1, "optimizer": "AdamW", "scheduler": "LambdaLR"} == spec["own"]
    assert OPTIMIZERS.build(spec, "") == own
    with pytest.raises(ConfigError, match="should be the optimizer of a program"):
        learner(OPTIMIZERS.build(spec, ""), torch.zeros(D))


def test_muon_needs_a_matrix():
    with pytest.raises(ConfigError, match=r"a model without matrices.*Use adamw"):
        stepper_for(Muon(), torch.zeros(4), [(4,)])
    assert isinstance(stepper_for(Muon(), torch.zeros(4), [(2, 2)]), ShapedStepper)


def test_a_run_of_a_configuration_names_another():
    with pytest.raises(
        ConfigError, match=r"optimizer.name: stands for the optimizer of a program.*adadelta, "
    ):
        load(overrides=["optimizer=own"])


@pytest.mark.parametrize("name", ["adafactor", "muon", "own"])
def test_local_steps_go_by_one_vector(name: str):
    with pytest.raises(ConfigError, match=f"worker.inner: should be an optimizer.*Found '{name}'"):
        load(overrides=[f"worker.inner={name}", "worker.local_steps=2"])


# Steps that fail


class Writes(torch.optim.SGD):
    """Writes to gradients, puts other memory in the place of a parameter, and fails when it is told to."""

    fails = False

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(2)
            p.data = p.data - p.grad
            self.state[p]["seen"] = self.state[p].get("seen", 0) + 1
        if self.fails:
            raise KeyError("told to")


def test_an_optimizer_that_writes_where_it_should_not():
    one = learner(OwnOptimizer.of(lambda ps: Writes(ps, 1.0), SHAPES), torch.zeros(D))
    row = torch.ones(D)
    one.step(0, {"w": row}, {})
    assert torch.equal(row, torch.ones(D))
    assert one.reference is not None
    assert torch.equal(one.reference, torch.ones(D))
    assert torch.equal(one.parameters, torch.full((D,), -2.0))


def test_a_step_that_fails_changes_nothing(monkeypatch):
    one = learner(OwnOptimizer.of(lambda ps: Writes(ps, 1.0), SHAPES), torch.zeros(D))
    go(one, 0, 2)
    before = state_file.flatten(one.state())
    kept = {name: tensor.clone() for name, tensor in before[1].items()}
    with monkeypatch.context() as context:
        context.setattr(Writes, "fails", True)
        with pytest.raises(InputError, match=r"A step of `optimizer` Writes failed: KeyError: 'told to'"):
            go(one, 2, 3)
    with pytest.raises(AggregationError, match="would make the parameters infinite"):
        one.step(2, {"w": torch.full((D,), 3e38)}, {})
    after = state_file.flatten(one.state())
    assert before[0] == after[0]
    assert all(torch.equal(kept[name], after[1][name]) for name in kept)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_step_by_shape_that_would_overflow_changes_nothing(name: str):
    one = learner(OPTIMIZERS.build({name: {"lr": 0.1}}, ""), torch.ones(D))
    go(one, 0, 1)
    kept = {key: tensor.clone() for key, tensor in state_file.flatten(one.state())[1].items()}
    with pytest.raises(AggregationError, match="infinite"):
        one.step(1, {"w": torch.full((D,), 3e38)}, {})
    after = state_file.flatten(one.state())[1]
    assert all(torch.equal(kept[key], after[key]) for key in kept)
    go(one, 1, 2)
