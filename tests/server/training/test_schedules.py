"""Learning rate schedules: those by hand, and those of torch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.optim import lr_scheduler

from varangian.registry import ConfigError
from varangian.server.training.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    Linear,
    MultiStep,
    Polynomial,
    StepDecay,
)


def test_schedules_by_hand():
    assert [Constant().factor(r, 10) for r in (0, 9)] == [1.0, 1.0]
    step = StepDecay(every=3, gamma=0.5)
    assert [step.factor(r, 10) for r in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    cosine = Cosine()
    assert [cosine.factor(r, 4) for r in range(4)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0.1464466]
    )
    assert Cosine(final=0.2).factor(2, 4) == pytest.approx(0.6)


FALLING = [
    Constant(),
    StepDecay(every=2, gamma=0.9),
    Cosine(),
    Exponential(gamma=0.99),
    Linear(),
    MultiStep(milestones=(1, 5)),
    Polynomial(power=2.0),
]


@pytest.mark.parametrize("rounds", [1, 2, 7, 1000])
@pytest.mark.parametrize("schedule", FALLING)
def test_no_schedule_rises_or_stops_learning(schedule, rounds: int):
    factors = [schedule.factor(round, rounds) for round in range(rounds)]
    assert factors[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors))
    assert all(factor > 0 for factor in factors)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (Exponential(gamma=0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        (MultiStep(milestones=(2, 5), gamma=0.3), lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.3)),
        (Linear(final=0.1, length=6), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, 6)),
        (Polynomial(power=0.5), lambda o: lr_scheduler.PolynomialLR(o, 12, 0.5)),
        (CosineRestarts(length=3, times=2), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2)),
    ],
)
def test_rates_are_those_of_torch_to_the_bit(schedule, theirs):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler = theirs(optimizer)
    for round in range(12):
        assert schedule.rate(0.3, round, 12) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def test_schedules_are_built_by_name():
    assert SCHEDULES.build("constant", "schedule") == Constant()
    assert SCHEDULES.build({"step": {"every": 5, "gamma": 0.2}}, "") == StepDecay(every=5, gamma=0.2)
    assert SCHEDULES.build({"multi_step": {"milestones": [2, 3]}}, "") == MultiStep(milestones=(2, 3))
    with pytest.raises(ConfigError, match=r"schedule.step.every: is required"):
        SCHEDULES.build("step", "schedule")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: StepDecay(every=0, gamma=0.5), "`every` should be at least 1. Found 0."),
        (lambda: StepDecay(every=1, gamma=1.5), "`gamma` should be above 0 and at most 1. Found 1.5."),
        (lambda: Cosine(final=2.0), "`final` should be between 0 and 1. Found 2.0."),
        (lambda: Linear(final=2.0), "`final` should be between 0 and 1. Found 2.0."),
        (lambda: Linear(length=0), "`length` should be at least 1. Found 0."),
        (lambda: Polynomial(power=0.0), "`power` should be a positive number. Found 0.0."),
        (lambda: CosineRestarts(length=0), "`length` should be at least 1. Found 0."),
        (
            lambda: MultiStep(milestones=(3, 2)),
            "`milestones` should be different rounds from 1, ascending. Found [3, 2].",
        ),
    ],
)
def test_impossible_values_are_refused(build, sentence: str):
    with pytest.raises(ValueError, match="should") as error:
        build()
    assert str(error.value) == sentence
