"""Rows in, one step out: always the same bits, and nothing at all when something is wrong."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kept import kept
from torch import Tensor

from varangian.aggregators import NNM, Aggregate, AggregationError, Aggregator, Gram, Krum
from varangian.server.training.ema import Average, Ema, samples
from varangian.server.training.learner import Learner, median_of
from varangian.server.training.optimizers import OPTIMIZERS, Optimizer, Sgd
from varangian.server.training.schedules import StepDecay

NAN = float("nan")


@dataclass(frozen=True)
class Mean:
    def requires(self, n: int, f: int) -> str | None:
        return None

    def __call__(self, gram: Gram) -> Tensor:
        return torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)

    def explain(self, gram: Gram) -> dict[str, Tensor]:
        return {"length": gram.inner.diagonal().sqrt()}


@dataclass(frozen=True)
class Columns:
    """A columnwise rule: the first row."""

    def requires(self, n: int, f: int) -> str | None:
        return None

    def columnwise(self, block: Tensor) -> Tensor:
        return block[0]


@dataclass(frozen=True)
class Shuffled:
    """A mixing that depends on randomness alone."""

    def requires(self, n: int, f: int) -> str | None:
        return None

    def outputs(self, n: int) -> int:
        return 1

    def mix(self, gram: Gram, rng: torch.Generator) -> Tensor:
        return torch.rand(1, len(gram), generator=rng, dtype=torch.float64)


def learner(aggregator: Aggregator | None = None, start: float = 1.0, d: int = 2, **options) -> Learner:
    sgd = Sgd(**({"lr": 0.5} | options))
    return Learner(torch.full((d,), start), aggregator or Aggregator(Mean(), f=1), sgd, rounds=10, seed=7)


def rows(*values: float, d: int = 2) -> dict[str, Tensor]:
    return {f"w{i:02}": torch.full((d,), value) for i, value in enumerate(values)}


def state(learner: Learner):
    """All that a later step depends on."""
    reference = None if learner.reference is None else learner.reference.tolist()
    memory = {name: torch.as_tensor(value).tolist() for name, value in learner._stepper.state().items()}
    return bytes(learner.payload()), reference, memory


# What a step does


def test_a_step_goes_against_the_aggregate():
    model = learner()
    step = model.step(0, rows(1.0, 3.0), {})
    assert model.parameters.tolist() == [0.0, 0.0]
    assert step.weights == {"w00": 0.5, "w01": 0.5}
    assert step.norm == pytest.approx(math.sqrt(8))
    assert step.lr == 0.5
    assert step.dropped == {}
    assert step.details["length"] == pytest.approx({"w00": math.sqrt(2), "w01": 3 * math.sqrt(2)})
    assert set(step.seconds) == {"aggregate", "step"}
    assert model.reference.tolist() == [2.0, 2.0]


def test_momentum_and_weight_decay_by_hand():
    """v <- 0.9 v + (g + 0.1 p); p <- p - 0.5 v."""
    model = learner(momentum=0.9, weight_decay=0.1)
    p, v = 1.0, 0.0
    for round, g in enumerate([1.0, -2.0, 0.5]):
        model.step(round, rows(g, g), {})
        v = 0.9 * v + (g + 0.1 * p)
        p -= 0.5 * v
        assert model.parameters.tolist() == pytest.approx([p, p], rel=1e-6)


def test_nesterov_by_hand():
    """v <- 0.9 v + g; p <- p - 0.5 (g + 0.9 v)."""
    model = learner(momentum=0.9, nesterov=True)
    p, v = 1.0, 0.0
    for round, g in enumerate([1.0, -2.0, 0.5]):
        model.step(round, rows(g, g), {})
        v = 0.9 * v + g
        p -= 0.5 * (g + 0.9 * v)
        assert model.parameters.tolist() == pytest.approx([p, p], rel=1e-6)


def test_the_schedule_sets_the_rate_of_each_round():
    model = learner(schedule=StepDecay(every=2, gamma=0.1))
    rates = [model.step(round, rows(1.0), {}).lr for round in range(5)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])
    assert model.parameters.tolist() == pytest.approx([1 - sum(rates)] * 2)


def test_the_next_rows_are_measured_from_the_last_aggregate():
    seen: list[Tensor | None] = []

    @dataclass(frozen=True)
    class Spy(Aggregator):
        def __call__(self, rows, reference=None, rng=None, **early):
            seen.append(reference)
            return super().__call__(rows, reference, rng, **early)

    model = learner(Spy(Mean()))
    model.step(0, rows(1.0, 3.0), {})
    model.step(1, rows(1.0, 3.0), {})
    assert seen[0] is None
    assert seen[1].tolist() == [2.0, 2.0]


def test_the_reference_does_not_share_memory_with_a_row():
    """Rows are overwritten in the next round."""

    @dataclass(frozen=True)
    class First(Aggregator):
        def __call__(self, rows, reference=None, rng=None, **early):
            return Aggregate(rows[0], None, ())

    model = learner(First(Mean()))
    pushed = rows(1.0, 3.0)
    model.step(0, pushed, {})
    pushed["w00"].fill_(NAN)
    assert model.reference.tolist() == [1.0, 1.0]


def test_a_rule_for_each_block():
    """The first worker lies in the first block, the last one in the second."""
    pushed = {"a": [9.0, 0.0, 5.0], "b": [1.0, 0.0, 5.0], "c": [1.1, 0.0, 5.2], "d": [1.2, 0.0, 8.0]}
    given = {name: torch.tensor(row) for name, row in pushed.items()} | {"e": torch.tensor([1.1, 0.0, 5.1])}
    sgd, krum = Sgd(lr=1.0), Aggregator(Krum(f=1), per_block=True)
    model = Learner(torch.zeros(3), krum, sgd, rounds=10, seed=7, blocks=(2, 1))
    step = model.step(0, given, {})
    assert model.parameters.tolist() == pytest.approx([-1.1, 0.0, -5.0])
    assert step.weights == pytest.approx({"a": 1 / 3, "b": 0, "c": 2 / 3, "d": 0, "e": 0})
    assert step.details == {}


def test_rows_are_not_written_to():
    pushed = rows(1.0, 3.0)
    learner(momentum=0.9, weight_decay=0.1).step(0, pushed, {})
    assert [row.tolist() for row in pushed.values()] == [[1.0, 1.0], [3.0, 3.0]]


def test_the_parameters_that_came_in_are_copied():
    start = torch.ones(2)
    model = Learner(start, Aggregator(Mean()), Sgd(lr=0.5), rounds=10, seed=7)
    model.step(0, rows(1.0), {})
    assert start.tolist() == [1.0, 1.0]


# The same bits


def run(order, aggregator: Aggregator, seed: int = 7) -> Learner:
    rng = torch.Generator().manual_seed(3)
    start = torch.randn(1000, generator=rng)
    model = Learner(start, aggregator, Sgd(lr=0.1, momentum=0.9), rounds=10, seed=seed)
    for round in range(3):
        pushed = {f"w{i:02}": torch.randn(1000, generator=rng) for i in range(7)}
        model.step(round, {name: pushed[name] for name in order}, {})
    return model


@pytest.mark.parametrize(
    "aggregator",
    [Aggregator(Mean()), Aggregator(Krum(f=2)), Aggregator(Columns()), Aggregator(Mean(), (Shuffled(),))],
    ids=["mean", "krum", "columnwise", "mixing"],
)
def test_the_order_of_arrival_never_changes_a_bit(aggregator: Aggregator):
    names = [f"w{i:02}" for i in range(7)]
    digests = {
        run(order, aggregator).digest()
        for order in (names, names[::-1], names[3:] + names[:3], sorted(names, key=lambda name: hash(name)))
    }
    assert len(digests) == 1


def test_the_seed_and_the_round_decide_the_randomness_of_mixings():
    names = [f"w{i:02}" for i in range(7)]
    aggregator = Aggregator(Mean(), (Shuffled(),))
    assert run(names, aggregator, seed=7).digest() != run(names, aggregator, seed=8).digest()
    first = learner(aggregator).step(0, rows(1.0, 2.0), {}).weights
    again = learner(aggregator).step(0, rows(1.0, 2.0), {}).weights
    later = learner(aggregator).step(1, rows(1.0, 2.0), {}).weights
    assert first == again != later


def test_the_digest_is_that_of_little_endian_floats():
    model = learner(start=-1.5)
    payload = struct.pack("<2f", -1.5, -1.5)
    assert model.payload() == payload
    assert model.digest() == hashlib.blake2b(payload, digest_size=16).hexdigest()


def test_the_digest_sees_one_bit():
    a, b = torch.zeros(3), torch.tensor([0.0, 0.0, 1e-45])
    digests = {Learner(p, Aggregator(Mean()), Sgd(lr=1.0), rounds=1, seed=1).digest() for p in (a, b)}
    assert len(digests) == 2


# Faults


def test_faults_spend_f():
    """Seven workers, f = 2: with one proven faulty, Krum for six with f = 1 remains."""
    model = learner(Aggregator(Krum(f=2)))
    step = model.step(0, rows(1.0, 1.1, 1.2, 1.3, 1.4, 1.5), {"w06": "not finite"})
    assert step.dropped == {"w06": "not finite"}
    assert sum(step.weights.values()) == pytest.approx(1.0)


def test_rows_that_the_aggregator_drops_are_named():
    model = learner()
    step = model.step(0, rows(1.0, NAN, 3.0), {})
    assert step.dropped == {"w01": "not finite"}
    assert step.weights == {"w00": 0.5, "w01": 0.0, "w02": 0.5}
    assert math.isnan(step.details["length"]["w01"])


def trained() -> Learner:
    model = learner(momentum=0.9, lr=10.0)
    model.step(0, rows(1.0, 2.0), {})
    return model


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("pushed", "faults", "sentence"),
    [
        (rows(), {}, "No push of round 5 is left to aggregate."),
        (rows(NAN, NAN), {}, "2 of 2 rows are provably invalid, but only f = 1 were declared Byzantine."),
        (rows(1.0), {"w01": "x", "w02": "y"}, "2 of 3 rows are provably invalid"),
        (rows(3e38, 3e38), {}, "The step would make the parameters infinite."),
    ],
)
def test_a_step_that_fails_changes_nothing(fresh: bool, pushed, faults, sentence: str):
    model = learner(momentum=0.9, lr=10.0) if fresh else trained()
    before = state(model)
    with pytest.raises(AggregationError) as error:
        model.step(5, pushed, faults)
    assert str(error.value).startswith(sentence)
    assert state(model) == before


def test_the_run_goes_on_as_if_the_failed_step_had_never_been():
    model, twin = trained(), trained()
    with pytest.raises(AggregationError):
        model.step(1, rows(3e38, 3e38), {})
    for each in (model, twin):
        each.step(2, rows(1.0, 2.0), {})
    assert model.digest() == twin.digest()


@dataclass(frozen=True)
class Broken:
    """A rule with a bug."""

    value: float = NAN

    def requires(self, n: int, f: int) -> str | None:
        return None

    def columnwise(self, block: Tensor) -> Tensor:
        return torch.full((block.shape[1],), self.value)


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_an_update_that_is_not_finite_blames_the_rule(value: float):
    model = learner(Aggregator(Broken(value)))
    before = state(model)
    with pytest.raises(AggregationError) as error:
        model.step(0, rows(1.0, 2.0), {})
    assert str(error.value) == f"The update of Broken(value={value}) is not finite."
    assert state(model) == before


def test_an_aggregate_of_another_shape_is_a_bug_and_no_bad_round():
    @dataclass(frozen=True)
    class Short(Aggregator):
        def __call__(self, rows, reference=None, rng=None, **early):
            result = super().__call__(rows, reference, rng, **early)
            return result._replace(vector=result.vector[:1])

    model = learner(Short(Mean()))
    before = state(model)
    with pytest.raises(
        TypeError, match=r"Mean\(\) should return a vector of 2 entries. Found shape \(1,\)."
    ):
        model.step(0, rows(1.0), {})
    assert state(model) == before


def test_a_step_says_how_many_were_believed_and_how_far_they_lie():
    """The last two rows are 1 and 7 away from the one that Krum believes."""
    pushed = {f"w{i:02}": torch.tensor([value, 0.0]) for i, value in enumerate([0.0, 0.0, 0.0, 1.0, 7.0])}
    step = learner(Aggregator(Krum(f=1))).step(0, pushed, {})
    assert step.effective == 1.0
    assert step.spread == pytest.approx((1 + 49) / 5)
    columns = learner(Aggregator(Columns())).step(0, pushed, {})
    assert (columns.effective, columns.spread) == (None, None)


# The average of the model


def averaged(aggregator: Aggregator) -> Learner:
    start = torch.ones(2)
    average = Average(Ema(decay=0.5, reference_batch=8), start)
    return Learner(start, aggregator, Sgd(lr=0.5), rounds=10, seed=7, average=average, batch=4)


def test_the_average_follows_each_step_by_what_it_has_learned_from():
    """Two rows of 4 samples are the 8 for which the decay is a half."""
    model = averaged(Aggregator(Mean()))
    model.step(0, rows(1.0, 3.0), {})
    assert model.parameters.tolist() == [0.0, 0.0]
    assert model.average.parameters.tolist() == [0.5, 0.5]


def test_rows_without_weight_teach_the_average_nothing():
    model = averaged(Aggregator(Krum(f=1)))
    step = model.step(0, rows(1.0, 1.0, 1.0, 1.0, 50.0), {})
    assert step.effective == pytest.approx(1.0)
    assert model.average.parameters.tolist() == pytest.approx([1 - 0.5 * (1 - 0.5**0.5)] * 2)
    assert samples(4, 5, step.effective) == pytest.approx(4)


def test_a_rule_without_weights_teaches_by_its_rows():
    model = averaged(Aggregator(Columns()))
    model.step(0, rows(1.0, 1.0), {"w02": "not finite"})
    assert model.average.parameters.tolist() == [0.75, 0.75]


def test_a_step_that_fails_leaves_the_average():
    model = averaged(Aggregator(Krum(f=1)))
    with pytest.raises(AggregationError):
        model.step(0, rows(1.0, 2.0), {})
    assert model.average.parameters.tolist() == [1.0, 1.0]


# What a checkpoint keeps


@pytest.mark.parametrize(
    "optimizer",
    [
        *(OPTIMIZERS.build(name, "") for name in OPTIMIZERS if name != "own"),
        Sgd(lr=0.3, momentum=0.9, nesterov=True),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
@pytest.mark.parametrize("at", [0, 3])
def test_a_learner_goes_on_with_the_same_bits(optimizer: Optimizer, at: int, tmp_path: Path):
    def fresh(start: float) -> Learner:
        point = torch.full((50,), start)
        average = Average(Ema(decay=0.9, reference_batch=8), point)
        rule = Aggregator(Krum(f=1), (NNM(f=1),))
        return Learner(point, rule, optimizer, rounds=9, seed=7, average=average, batch=4, shapes=[(5, 10)])

    def pushed(round: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(round)
        return {f"w{i:02}": torch.randn(50, generator=rng) for i in range(7)}

    straight, resumed = fresh(1.0), fresh(-1.0)
    for round in range(at):
        straight.step(round, pushed(round), {})
    resumed.step(0, pushed(5), {})  # whatever was there before is gone
    resumed.restore(kept(straight.state(), tmp_path))
    for round in range(at, 6):
        assert (
            straight.step(round, pushed(round), {}).weights
            == resumed.step(round, pushed(round), {}).weights
        )
    assert straight.digest() == resumed.digest()
    assert torch.equal(straight.average.parameters, resumed.average.parameters)


def test_a_state_of_another_run_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\). Found \(2,\)"):
        learner(d=3).restore(learner(d=2).state())
    with pytest.raises(ValueError, match="Found an average"):
        learner().restore(averaged(Aggregator(Mean())).state())


# Buffers


def with_buffers(initial: Sequence[float], aggregator: Aggregator | None = None, **options: Any) -> Learner:
    """Two parameters and buffers."""
    point = torch.tensor([1.0, 1.0, *initial])
    rule = aggregator or Aggregator(Mean(), f=1)
    return Learner(point, rule, Sgd(lr=0.5), rounds=10, seed=7, buffers=len(initial), **options)


def vectors(**buffers: Sequence[float]) -> dict[str, Tensor]:
    return {name: torch.tensor([2.0, 2.0, *numbers]) for name, numbers in buffers.items()}


def test_buffers_are_medians_that_the_rule_does_not_see():
    one = with_buffers([0.0, 5.0])
    rows, buffers = one.split(vectors(a=(1.0, 7.0), b=(3.0, 7.0), c=(2.5, 1e30), d=(9e30, 8.0)))
    step = one.step(0, rows, {}, buffers=buffers)
    assert step.norm == pytest.approx(math.sqrt(8))
    assert one.parameters.tolist() == [0.0, 0.0, 2.5, 7.0]  # the lower ones of two
    assert one.payload().nbytes == 16
    one.step(1, rows, {})
    assert one.parameters.tolist() == [-1.0, -1.0, 2.5, 7.0]


def test_buffers_of_a_row_that_was_dropped_do_not_count():
    one = with_buffers([0.0])
    rows, buffers = one.split(vectors(a=(1.0,), b=(2.0,), c=(3.0,)))
    rows["a"][0] = NAN
    assert one.step(0, rows, {}, buffers=buffers).dropped == {"a": "not finite"}
    assert one.parameters[2] == 2.0


def test_a_step_without_an_update_leaves_buffers_as_they_are():
    one = with_buffers([4.0])
    rows, buffers = one.split(vectors(a=(1.0,)))
    rows["a"].fill_(NAN)
    with pytest.raises(AggregationError):
        one.step(0, rows, {}, buffers=buffers)
    assert one.parameters.tolist() == [1.0, 1.0, 4.0]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 999), st.sampled_from([1e38, -1e38, 1e-30, 3.0]), st.booleans())
def test_f_of_more_than_2_f_workers_do_not_move_buffers_beyond_those_of_the_others(
    f: int, seed: int, lie: float, weighted: bool
):
    random = torch.Generator().manual_seed(seed)
    honest = torch.randint(-50, 50, (f + 1 + seed % 3, 5), generator=random).float()
    stacked = torch.cat([honest, lie * torch.ones(f, 5)])
    found = median_of(stacked.unbind(), [1 / len(stacked)] * len(stacked) if weighted else None)
    assert (honest.amin(0) <= found).all()
    assert (found <= honest.amax(0)).all()
    assert torch.equal(found, found.round() if lie == 3.0 else found)
    assert torch.equal(found, stacked.median(dim=0).values)


def test_a_median_by_weight_is_that_of_copies():
    numbers = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).unbind()
    copies = [row for row, count in zip(numbers, (1, 4, 2, 3), strict=True) for _ in range(count)]
    assert torch.equal(median_of(numbers, [0.1, 0.4, 0.2, 0.3]), median_of(copies))


def test_an_average_has_the_buffers_of_the_model(tmp_path: Path):
    average = Average(Ema(decay=0.5, reference_batch=1), torch.ones(2))
    one = with_buffers([0.0], average=average)
    rows, buffers = one.split(vectors(a=(7.0,), b=(7.0,)))
    one.step(0, rows, {}, buffers=buffers)
    found = one.averaged
    assert found is not None
    assert found[2] == 7.0
    assert 0 < float(found[0]) < 1
    other = with_buffers([1.0], average=Average(Ema(decay=0.5, reference_batch=1), torch.zeros(2)))
    other.restore(kept(one.state(), tmp_path))
    assert torch.equal(other.parameters, one.parameters)
