"""Bounds hold, whatever the optimizer does; and norms of what no float32 holds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varangian.launch.memory_budget import resident_memory
from varangian.server.training.bounds import BLOCK, LARGEST, Bounds, norm
from varangian.server.training.optimizer import Sgd, Stepper


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    momentum=st.sampled_from([0.0, 0.5, 0.99]),
    nesterov=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1, 3.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e20]),
)
def test_no_step_leaves_the_bounds(
    seed: int, momentum: float, nesterov: bool, weight_decay: float, scale: float
):
    sgd = Sgd(lr=0.7, momentum=momentum, nesterov=nesterov and momentum > 0, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    point, stepper = torch.randn(5, generator=generator), Stepper(sgd)
    bounds = Bounds.of(point, None)
    for _ in range(6):
        gradient = scale * torch.randn(5, generator=generator)
        bounds = bounds.after(sgd, norm(gradient) or 0.0, 0.7)
        stepper.step(point, gradient, 0.7, point)
        found = Bounds.of(point, stepper.velocity)
        assert found.point <= bounds.point * (1 + 1e-6)
        assert found.velocity <= bounds.velocity * (1 + 1e-6)


def test_a_straight_line_meets_the_bound():
    bounds = Bounds(1.0).after(Sgd(lr=0.5), 2.0, 0.5)
    assert bounds == Bounds(2.0, 0.0)
    assert Bounds(1.0).after(Sgd(lr=0.5, momentum=0.5), 2.0, 0.5).velocity == 2.0


@pytest.mark.parametrize(
    ("bounds", "risky"), [((1.0, 1.0), False), ((LARGEST, 0.0), True), ((0.0, math.inf), True)]
)
def test_what_is_risky(bounds: tuple[float, float], risky: bool):
    assert Bounds(*bounds).risky is risky
    assert Bounds(math.nan).risky


def test_norms():
    vector = torch.full((2 * BLOCK + 5,), 2.0)
    assert norm(vector) == pytest.approx(2 * math.sqrt(len(vector)), rel=1e-12)
    assert norm(torch.full((9,), 3e38)) == pytest.approx(9e38, rel=1e-6)
    for bad in (math.nan, math.inf):
        vector[BLOCK + 3] = bad
        assert norm(vector) is None
        assert Bounds.of(vector, None).point == math.inf


@pytest.mark.skipif(not resident_memory(), reason="the system does not say how much memory is taken")
def test_a_norm_takes_no_memory_to_speak_of():
    vector = torch.ones(40_000_000)
    norm(vector[:BLOCK])
    before = resident_memory()
    assert norm(vector) == pytest.approx(math.sqrt(len(vector)))
    assert resident_memory() - before < 20_000_000  # 160 MB of it were 70 to 150 more, in crumbs
