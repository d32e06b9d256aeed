"""The gate on a held-out loss: which rows it leaves out, and that nothing closes it for the others."""

import math

import pytest
import torch

from varangian.aggregators import Aggregator, Krum, Mean, Median, Rows
from varangian.aggregators.kernels import backend_for
from varangian.aggregators.mixings.scaled import Scaled
from varangian.plugins import InputError
from varangian.protos.layout import Fragments, Layout
from varangian.server.rows.source import StepInput
from varangian.server.training.gate import Gate, HeldOutGate
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import OPTIMIZERS

D, LR = 6, 0.5
TARGET = torch.linspace(-2, 2, D)


def learner(aggregator=None, d=D, **options):
    optimizer = OPTIMIZERS.build({"sgd": {"lr": LR}}, "")
    start = torch.arange(float(d)) / d
    return Learner(start, aggregator or Aggregator(Mean()), optimizer, rounds=9, seed=1, **options)


def loss(parameters, round):
    """A bowl, whose place depends on the round."""
    return float((parameters.double() - TARGET - round).square().sum())


def drawn(n, seed=0):
    """Rows of which some go down and some up, each by another length."""
    random = torch.Generator().manual_seed(seed)
    return {f"w{i:02}": torch.randn(D, generator=random) * (1 + i % 3) for i in range(n)}


def by_loop(learner, rows, round, step, tolerance, f):
    """The f rows that raise the loss most, each by itself and in float64."""
    x = learner.parameters.double()
    rises = {}
    for name, row in rows.items():
        moved = [float(a) - step * float(b) for a, b in zip(x, row.double(), strict=True)]
        rises[name] = loss(torch.tensor(moved, dtype=torch.float64), round) - loss(x, round)
    worst = sorted((r for r in rises.values() if r > tolerance), reverse=True)[:f]
    return {name: rise for name, rise in rises.items() if rise in worst}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("step", "tolerance", "f"), [("auto", 0.0, 3), (0.1, 0.3, 2), (2.0, 5.0, 7)])
def test_the_rows_that_raise_the_loss_most_as_an_explicit_loop_finds_them(seed, step, tolerance, f):
    rows, server = drawn(9, seed), learner()
    gate = HeldOutGate(Gate(step=step, tolerance=tolerance), loss)
    found = gate.left_out(2, server, rows, {}, f)
    expected = by_loop(server, rows, 2, LR if step == "auto" else step, tolerance, f)
    assert expected
    assert [*found] == [*expected]
    assert found == {name: pytest.approx(rise, rel=1e-5) for name, rise in expected.items()}


def test_rows_count_as_the_rule_sees_them_multiplied_by_their_factors():
    """A row that goes too far raises the loss, half of it lowers it."""
    server = learner()
    rows = {"w00": (server.parameters - TARGET) * 2.4 / LR, "w01": torch.zeros(D)}
    gate = HeldOutGate(Gate(), loss)
    assert [*gate.left_out(0, server, rows, {}, 1)] == ["w00"]
    assert gate.left_out(0, server, rows, {}, 1, {"w00": 0.5, "w01": 1.0}) == {}


def test_what_is_at_fault_already_is_of_the_f():
    rows = {name: -row for name, row in zip("abcdef", [learner().parameters - TARGET] * 6, strict=True)}
    gate = HeldOutGate(Gate(), loss)
    assert [*gate.left_out(0, learner(), rows, {}, 2)] == ["a", "b"]
    assert [*gate.left_out(0, learner(), rows, {"x": "not finite"}, 2)] == ["a"]
    assert gate.left_out(0, learner(), rows, {"x": "", "y": ""}, 2) == {}
    assert gate.left_out(0, learner(), rows, {}, 0) == {}


@pytest.mark.parametrize(
    ("aggregator", "n", "spared"),
    [(Aggregator(Median(), f=2), 5, 0), (Aggregator(Median(), f=2), 6, 1), (Aggregator(Krum(f=2)), 8, 1)],
)
def test_the_condition_of_the_rule_holds_for_the_rows_that_are_left(aggregator, n, spared):
    down = learner().parameters - TARGET
    rows = {f"w{i}": down * (1 if i < n - 3 else -i) for i in range(n)}
    server = learner(aggregator)
    found = HeldOutGate(Gate(), loss).left_out(0, server, rows, {}, 2)
    assert [*found] == [f"w{n - 1}"][:spared]
    server.step(0, {name: row for name, row in rows.items() if name not in found}, {})


def test_a_row_that_is_not_finite_is_left_to_the_rule():
    rows = drawn(4) | {"w01": torch.full((D,), math.nan)}
    rows |= {name: TARGET - learner().parameters for name in ("w00", "w02", "w03")}
    for f, left_out in ((1, []), (2, ["w00"]), (3, ["w00", "w02"])):
        assert [*HeldOutGate(Gate(), loss).left_out(0, learner(), rows, {}, f)] == left_out
    dropped = learner(Aggregator(Mean(), f=1)).step(0, rows, {}).dropped
    assert dropped == {"w01": "not finite"}


def test_a_row_after_which_there_is_no_loss_is_the_worst():
    """Otherwise a row could close the gate for all."""
    server, told = learner(), []
    up = TARGET - server.parameters
    rows = {"w00": up, "w01": torch.full((D,), 3e38), "w02": up * 2, "w03": -up}

    def refuses(parameters, round):
        if float(parameters.abs().max()) > 1e30:
            raise InputError("`loss` failed.")
        return loss(parameters, round)

    def overflows(parameters, round):
        return float((parameters - TARGET).square().sum())

    for asked in (refuses, overflows):
        gate = HeldOutGate(Gate(), asked, told.append)
        assert gate.left_out(0, server, rows, {}, 1) == {"w01": math.inf}
        assert [*gate.left_out(0, server, rows, {}, 2)] == ["w01", "w02"]
    (sentence,) = told
    assert "`loss` failed. The vectors for which it failed were left out" in sentence


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_loss_that_fails_leaves_nobody_out(good):
    """At once, or for more rows than may be Byzantine."""
    for ends in (math.nan, math.inf, -math.inf, InputError("`gate` failed: no such file.")):
        asked, told = [], []

        def fails(parameters, round, ends=ends, asked=asked):
            asked.append(round)
            if len(asked) <= good:
                return 1.0
            if isinstance(ends, InputError):
                raise ends
            return ends

        gate = HeldOutGate(Gate(), fails, told.append)
        assert gate.left_out(0, learner(), drawn(5), {}, 2) == {}
        (sentence,) = told
        assert "all vectors of the round took part" in sentence
        assert gate.left_out(1, learner(), drawn(5), {}, 2) == {}
        assert len(told) == 1 or good


def test_rounds_with_a_gate():
    gate = HeldOutGate(Gate(every=3), loss)
    open = [round for round in range(7) if not gate.left_out(round, learner(), drawn(9), {}, 3)]
    assert open == [1, 2, 4, 5]


def test_of_a_fragment_its_own_part_moves():
    layout = Layout((("a", (4,)), ("b", (3,)), ("c", (4,))))
    split = Fragments(layout, 2)
    server, out = learner(d=11, fragments=split), torch.empty(11)
    for round in (0, 1):
        fragment = split.of(round)
        row = torch.ones(split.numels[fragment])
        server.move_along(round, row, 0.25, out)
        changed = torch.zeros(11)
        for part in split.slices[fragment]:
            changed[part] = 0.25
        assert torch.equal(out, server.parameters - changed)


def test_buffers_stay_those_of_the_model():
    server, out = learner(d=D + 2, buffers=2), torch.empty(D + 2)
    server.move_along(0, torch.ones(D, dtype=torch.bfloat16), 1.0, out)
    assert torch.equal(out[:D], server.parameters[:D] - 1)
    assert torch.equal(out[D:], server.parameters[D:])


def test_what_is_left_of_an_input_is_what_would_be_measured_anew():
    rows, reference = drawn(6), torch.ones(D)

    def measured(rows):
        stacked = Rows.of([*rows.values()])
        return backend_for(stacked).gram(stacked, reference)

    whole = StepInput(
        rows,
        mix=(Scaled((1.0, 0.5, 0.25, 1.0, 0.75, 1.0)),),
        measure=lambda _: measured(rows),
        ages={"w00": 1},
        fresh={"w01", "w02"},
        buffers={"w01": torch.ones(1), "w02": torch.zeros(1)},
    )
    left = whole.without({"w01", "w04"})
    assert [*left.rows] == ["w00", "w02", "w03", "w05"]
    assert left.mix == (Scaled((1.0, 0.25, 1.0, 1.0)),)
    assert left.factors == {"w00": 1.0, "w02": 0.25, "w03": 1.0, "w05": 1.0}
    assert torch.allclose(left.measure(None), measured(left.rows), atol=1e-5)
    assert (left.ages, left.fresh, [*left.buffers]) == ({"w00": 1}, {"w02"}, ["w02"])
    assert whole.without(()) is whole


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"step": 0.0}, {"step": math.inf}, {"tolerance": -1.0}, {"every": 0}]
)
def test_settings_that_make_no_sense(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` should be .* Found"):
        Gate(**wrong)
