import pathlib
import runpy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varangian.aggregators import Aggregator, Krum, Mean, Median
from varangian.registry import ConfigError, construct
from varangian.server.training.ema import Average, Ema, samples
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

DECAYS = st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 0.99999])


@given(DECAYS, st.integers(1, 64), st.floats(0.1, 1e4))
def test_so_many_samples_in_one_step_or_in_kappa(decay, kappa, batch):
    ema = Ema(decay=decay, reference_batch=32)
    assert ema.rate(kappa * batch) == pytest.approx(ema.rate(batch) ** kappa, rel=1e-9, abs=1e-300)
    assert ema.share(batch) == pytest.approx(1 - ema.rate(batch), abs=1e-15)


def test_the_share_keeps_its_digits_close_to_one():
    assert Ema(decay=1 - 1e-12, reference_batch=1).share(1) == pytest.approx(1e-12, rel=1e-3)
    assert Ema(decay=0.0, reference_batch=1).share(0) == 0


@pytest.mark.parametrize("kappa", [2, 8, 64])
def test_kappa_small_steps_are_one_large_one_where_the_model_stays(kappa):
    """ "How to Scale Your EMA": exact for a constant theta, whatever kappa is."""
    ema, start, theta = Ema(decay=0.99, reference_batch=16), torch.randn(1000), torch.randn(1000)
    small, large = Average(ema, start), Average(ema, start)
    for _ in range(kappa):
        small.update(theta, 16)
    assert large.update(theta, 16 * kappa) == pytest.approx(0.99**kappa)
    torch.testing.assert_close(small.parameters, large.parameters, rtol=1e-5, atol=2e-6)
    assert (large.parameters - start).norm() > 0.01 * (theta - start).norm()


def test_the_value_by_hand():
    average = Average(Ema(decay=0.5, reference_batch=10), torch.tensor([8.0, 0.0]))
    assert average.update(torch.tensor([0.0, 16.0]), 20) == 0.25
    assert average.parameters.tolist() == [2.0, 12.0]


def test_twelve_of_fifteen_workers():
    ema = Ema(decay=0.996, reference_batch=15 * 32)
    assert ema.rate(samples(32, 12)) == pytest.approx(0.996799, abs=5e-7)


def test_a_rejected_step_changes_nothing():
    average = Average(Ema(decay=0.9, reference_batch=32), torch.ones(3))
    assert average.update(torch.full((3,), torch.nan), samples(32, 0)) == 1
    assert average.parameters.tolist() == [1, 1, 1]


def test_the_average_is_its_own_memory_and_stays_in_it():
    start = torch.ones(3)
    average = Average(Ema(decay=0.9, reference_batch=1), start)
    held, address = average.parameters, average.parameters.data_ptr()
    average.update(torch.zeros(3, dtype=torch.float64), 1)
    assert start.tolist() == [1, 1, 1]
    assert held.data_ptr() == average.parameters.data_ptr() == address
    assert held.dtype == torch.float32
    assert held.tolist() == pytest.approx([0.9] * 3)


@pytest.mark.parametrize(("decay", "start", "target"), [(0.9999, 1.0, 1.0004), (0.99999, 3.0, -2e-6)])
def test_no_step_is_too_small_to_count(decay, start, target):
    """A float32 average stops near where it began: its last digit is more than such a step."""
    average = Average(Ema(decay=decay, reference_batch=1), torch.tensor([start]))
    for _ in range(5000):
        average.update(torch.tensor([target]), 1)
    wanted = target + (start - target) * decay**5000
    assert average.parameters.item() == torch.tensor(wanted).item()


def test_restored_it_goes_on_alike():
    ema, points = Ema(decay=0.9, reference_batch=1), torch.randn(6, 5)
    straight, before, after = (Average(ema, points[0]) for _ in range(3))
    for point in points[1:]:
        straight.update(point, 1)
    for point in points[1:3]:
        before.update(point, 1)
    after.restore(before.state())
    for point in points[3:]:
        after.update(point, 1)
    assert torch.equal(straight.parameters, after.parameters)
    with pytest.raises(ValueError, match=r"shape \(5,\). Found \(4,\)"):
        after.restore({"parameters": torch.ones(4), "rest": torch.ones(4)})


@pytest.mark.parametrize(
    ("counted", "effective", "expected"),
    [(12, None, 384), (12, 9.5, 304), (1, 1.0, 32), (12, 12.000001, 384), (0, None, 0)],
)
def test_samples_that_a_step_learned_from(counted, effective, expected):
    assert samples(32, counted, effective) == pytest.approx(expected)


@pytest.mark.parametrize(("rule", "expected"), [(Mean(), 7.0), (Krum(f=1), 1.0)])
def test_a_rule_that_believes_one_worker_averages_as_slowly_as_one(rule, expected):
    learner = Learner(torch.zeros(20), Aggregator(rule), Sgd(lr=0.1), rounds=1, seed=1)
    step = learner.step(0, {f"w{i:02d}": torch.randn(20) for i in range(7)}, {})
    assert samples(1, 7, step.effective) == pytest.approx(expected)


@pytest.mark.parametrize(("rule", "expected"), [(Mean(), 1.0), (Median(), 1.0), (Krum(f=1), 0.0)])
def test_only_rows_that_are_new_are_samples(rule, expected):
    """FedLaAvg: of ten latest vectors one was pushed in this round, far from the others."""
    names = [f"w{i:02d}" for i in range(10)]
    rows = {name: torch.full((20,), float(name == "w03")) for name in names}
    average = Average(Ema(decay=0.9, reference_batch=10), torch.zeros(20))
    learner = Learner(
        torch.zeros(20), Aggregator(rule), Sgd(lr=0.1), rounds=9, seed=1, batch=10, average=average
    )
    told, update = [], average.update
    average.update = lambda parameters, samples: told.append(samples) or update(parameters, samples)
    learner.step(0, rows, {}, fresh={"w03"})
    assert told == [pytest.approx(10 * expected)]
    assert average._ema.share(told[0]) == pytest.approx(0.1 * expected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"decay": 1.0, "reference_batch": 1}, "`decay` should be at least 0 and below 1. Found 1.0"),
        ({"decay": float("nan"), "reference_batch": 1}, "Found nan"),
        ({"reference_batch": 0}, "`reference_batch` should be at least 1. Found 0"),
        ({}, "reference_batch: is required"),
    ],
)
def test_an_average_that_cannot_be(fields, said):
    with pytest.raises(ConfigError, match=said):
        construct(Ema, fields, "ema", {})


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(pathlib.Path(__file__).parents[3] / "benchmarks" / "ema.py"))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_rule_is_closest_then_the_linear_one_and_no_scaling_is_worst(benchmark, seed):
    """ "How to Scale Your EMA", the noisy quadratic with kappa = 8."""
    problem = benchmark["Quadratic"](dimensions=20, steps=512)
    found = benchmark["errors"](problem, 8, seed)
    rule, linear, unscaled = (found[name] for name in ("rho^kappa", "1 - kappa (1 - rho)", "rho"))
    assert rule < 0.8 * linear
    assert linear < 0.1 * unscaled


def test_the_table_is_printed(benchmark, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ema.py", "--kappas", "4", "8", "--steps", "64", "--seeds", "1"])
    benchmark["main"]()
    out = capsys.readouterr().out
    assert out.splitlines()[2] == "| kappa | rho^kappa | 1 - kappa (1 - rho) | rho |"
    assert [line.split()[1] for line in out.splitlines()[4:]] == ["4", "8"]
