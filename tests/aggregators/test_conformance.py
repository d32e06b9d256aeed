"""Conformance: properties of every registered rule, mixing and combination, whatever it computes."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.aggregators import kit
from tests.extent import examples
from torch import Tensor

from varangian.aggregators import MIXINGS, RULES, Aggregate, AggregationError, Aggregator, Rows

EVERY = pytest.mark.parametrize("name", kit.specs())
FAMILY = pytest.mark.parametrize("family", kit.FAMILIES)


def with_row(rows: Tensor, i: int, value: float | Tensor) -> Tensor:
    changed = rows.clone()
    changed[i] = value
    return changed


def without_row(rows: Tensor, i: int) -> Tensor:
    return torch.cat([rows[:i], rows[i + 1 :]])


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def assert_consistent(aggregate: Aggregate, rows: Tensor, reference: Tensor | None = None) -> None:
    """Finite, and the weights say what the vector is."""
    assert aggregate.vector.isfinite().all()
    if aggregate.weights is None:
        return
    kept = [i for i in range(len(rows)) if i not in aggregate.dropped]
    parts = aggregate.weights.to(rows.device)[kept, None] * rows[kept].double()
    rebuilt = parts.sum(dim=0)
    if reference is not None:
        rebuilt += aggregate.reference_weight * reference.double()
    scale = parts.abs().sum(dim=0).max() + 1e-300
    error = (aggregate.vector.double() - rebuilt).abs().max()
    # Subnormal entries count as zero, and so may a coefficient that is subnormal in float32.
    tiny = torch.finfo(torch.float32).tiny
    lost = parts[aggregate.weights[kept].abs() < tiny].abs().sum(dim=0).max()
    coarse = torch.finfo(rows.dtype).tiny + 2.0**-149 * rows[kept].double().abs().max() + lost
    assert error <= 4 * torch.finfo(rows.dtype).eps * scale + coarse


@EVERY
@FAMILY
def test_runs(name: str, family: str) -> None:
    rows = kit.rows_of(family, dtype=torch.float32)
    reference = rows.mean(dim=0) / 2
    assert_consistent(kit.built(name)(rows, None, kit.rng()), rows)
    assert_consistent(kit.built(name)(rows, reference, kit.rng()), rows, reference)


@pytest.mark.parametrize("name", kit.those_with("permutation"))
@pytest.mark.parametrize("family", ["plain", "lopsided"])
def test_order_of_workers_does_not_matter(name: str, family: str) -> None:
    rows, order = kit.rows_of(family), torch.randperm(kit.N)
    kit.assert_near(kit.update(kit.built(name), rows[order]), kit.update(kit.built(name), rows), 1e-9, rows)


@pytest.mark.parametrize("name", kit.those_with("permutation"))
def test_weights_follow_their_workers(name: str) -> None:
    rows, order = kit.rows_of("plain"), torch.randperm(kit.N)
    before, after = kit.built(name)(rows), kit.built(name)(rows[order])
    if before.weights is not None:
        assert torch.allclose(after.weights, before.weights[order], atol=1e-8)


@pytest.mark.parametrize("name", kit.those_with("translation"))
@pytest.mark.parametrize("family", ["plain", "sparse"])
def test_moves_with_the_rows_and_the_reference(name: str, family: str) -> None:
    rows, shift = kit.rows_of(family), torch.randn(kit.D, dtype=torch.float64).to(kit.DEVICE)
    reference = rows.mean(dim=0) / 2
    moved = kit.update(kit.built(name), rows + shift, reference + shift)
    kit.assert_near(moved, kit.update(kit.built(name), rows, reference) + shift, 1e-8, rows)


@pytest.mark.parametrize("name", kit.those_with("scale"))
@pytest.mark.parametrize("factor", [-3.0, 2.0**-30])
def test_scales_with_the_rows(name: str, factor: float) -> None:
    rows = kit.rows_of("plain")
    wanted = factor * kit.update(kit.built(name), rows)
    kit.assert_near(kit.update(kit.built(name), factor * rows), wanted, 1e-8, abs(factor) * rows)


@pytest.mark.parametrize("name", kit.those_with("unanimity"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unanimous_workers_get_their_way(name: str, dtype: torch.dtype) -> None:
    rows = kit.rows_of("plain", dtype=dtype)[:1].repeat(kit.N, 1)
    kit.assert_near(kit.update(kit.built(name), rows), rows[0], 16 * torch.finfo(dtype).eps)


@EVERY
def test_copies_are_harmless(name: str) -> None:
    """Colluders and lazy workers send the same vector; whatever is divided by a distance must live."""
    rows = kit.rows_of("plain", dtype=torch.float32)
    rows[4:10] = rows[3]
    rows[12:] = rows[11]
    assert_consistent(kit.built(name)(rows, None, kit.rng()), rows)


@EVERY
def test_zeros_give_zero(name: str) -> None:
    rows = torch.zeros(kit.N, kit.D, device=kit.DEVICE)
    assert kit.update(kit.built(name), rows).eq(0).all()


@EVERY
@pytest.mark.parametrize("f", [0, kit.F])
def test_runs_with_the_fewest_rows_and_not_with_fewer(name: str, f: int) -> None:
    aggregator = kit.built(name, f)
    n = kit.least_n(aggregator)
    rows = kit.rows_of("plain", n)
    assert_consistent(aggregator(rows, None, kit.rng()), rows)
    with pytest.raises(AggregationError, match=r"needs|select|no rows|only f|left|components"):
        aggregator(rows[: n - 1] if n > 1 else with_row(rows, 0, torch.nan))


@pytest.mark.parametrize("name", kit.those_with("bounded"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("row", [0, kit.N - 1])
def test_one_huge_row_cannot_move_it_far(name: str, dtype: torch.dtype, row: int) -> None:
    honest = kit.rows_of("plain", dtype=dtype)
    rows = with_row(honest, row, 1e30)
    found = kit.built(name)(rows, None, kit.rng())
    assert found.dropped == ()
    assert found.vector.double().norm() <= 1.01 * honest.double().norm(dim=1).max()


@pytest.mark.parametrize("name", kit.those_with("bounded"))
def test_huge_row_counts_as_any_far_row(name: str) -> None:
    """What is left after it must be as exact as without it: 1e30 and 1e12 are both only far away."""
    rows = kit.rows_of("plain")
    far, farther = with_row(rows, 3, 1e12), with_row(rows, 3, 1e30)
    kit.assert_near(kit.update(kit.built(name), farther), kit.update(kit.built(name), far), 1e-6, rows)


@EVERY
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_non_finite_row_is_dropped(name: str, value: float, dtype: torch.dtype) -> None:
    rows = kit.rows_of("plain", dtype=dtype)
    bad = rows.clone()
    bad[5, 7] = value
    found = kit.built(name)(bad, None, kit.rng())
    wanted = kit.built(name)(without_row(rows, 5), None, kit.rng(), faults=1)
    assert found.dropped == (5,)
    assert same_bits(found.vector, wanted.vector)
    if found.weights is not None and wanted.weights is not None:
        assert found.weights[5] == 0
        assert same_bits(without_row(found.weights, 5), wanted.weights)


@EVERY
def test_float64_row_too_long_to_square_is_dropped(name: str) -> None:
    rows = with_row(kit.rows_of("plain"), 2, 1e200)
    assert kit.built(name)(rows, None, kit.rng()).dropped == (2,)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_subnormal_row_counts_as_zero(name: str, dtype: torch.dtype) -> None:
    rows = kit.rows_of("plain", dtype=dtype)
    subnormal = with_row(rows, 1, torch.finfo(dtype).tiny / 4)
    subnormal[1, ::2] *= -1
    found = kit.built(name)(subnormal, None, kit.rng())
    wanted = kit.built(name)(with_row(rows, 1, 0.0), None, kit.rng())
    assert found.dropped == ()
    assert same_bits(found.vector, wanted.vector)


@pytest.mark.parametrize("name", ["mean", "median", "meamed", "krum", "nnm, median", "sign_majority"])
@pytest.mark.parametrize("kernels", ["blocked", "reference"])
def test_small_numbers_of_float16_count(name: str, kernels: str) -> None:
    """Those below 6.1e-5 are subnormal in float16, and ordinary ones where it is computed."""
    rows = kit.rows_of("plain").mul(1e-5).half()
    wanted = kit.update(kit.built(name), rows.double())
    found = kit.update(replace(kit.built(name), backend=kernels), rows)
    assert torch.equal(found, wanted.half()) or (found - wanted).abs().max() <= 2.0**-24
    assert found.any()


@EVERY
def test_more_invalid_rows_than_declared_are_an_error(name: str) -> None:
    rows = kit.rows_of("plain")
    rows[: kit.F + 1] = torch.nan
    with pytest.raises(AggregationError, match="only f = 2 were declared"):
        kit.built(name)(rows)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_device_stay(name: str, dtype: torch.dtype) -> None:
    rows = kit.rows_of("plain", d=3001, dtype=dtype)
    found = kit.update(kit.built(name), rows)
    assert found.dtype == dtype
    assert found.device.type == kit.DEVICE.type
    flushed = rows.masked_fill(rows.abs() < Rows.of(rows).least_normal, 0)
    exact = kit.update(kit.built(name), flushed.double())
    tolerance = max(4 * torch.finfo(dtype).eps, kit.ILL_CONDITIONED.get(name, 0))
    kit.assert_near(found, exact, tolerance, rows)


@EVERY
def test_forms_of_rows_give_the_same_bits(name: str) -> None:
    rows = kit.rows_of("plain", d=5000, dtype=torch.float32)
    wanted = kit.update(kit.built(name), rows)
    spaced = torch.zeros(kit.N, 6000, device=kit.DEVICE)
    spaced[:, 500:5500] = rows
    forms: dict[str, object] = {
        "list": list(rows.clone().unbind()),
        "columns of a wider matrix": spaced[:, 500:5500],
        "column-major": rows.T.contiguous().T,
        "requires_grad": rows.clone().requires_grad_(),
    }
    if kit.DEVICE.type == "cpu":
        array = rows.numpy().copy()
        array.flags.writeable = False
        forms |= {"array": array, "list of arrays": list(array), "Fortran": np.asfortranarray(array)}
        backwards = array[::-1, ::-1].copy()[::-1, ::-1]
        forms |= {"backwards": backwards, "list of backwards": list(backwards)}
        forms |= {"big-endian": array.astype(">f4")}
    for form, form_rows in forms.items():
        found = kit.built(name)(form_rows, None, kit.rng()).vector  # type: ignore[arg-type]
        assert same_bits(found, wanted), form
        assert not found.requires_grad


@EVERY
@pytest.mark.parametrize("trouble", [0.0, 1e30, torch.nan, 1e-40])
def test_rows_are_not_written_to(name: str, trouble: float) -> None:
    rows = with_row(kit.rows_of("plain", dtype=torch.float32), 8, trouble)
    reference = rows[0].clone()
    before, version = rows.clone(), rows._version
    kit.built(name)(rows, reference, kit.rng())
    assert torch.equal(rows.nan_to_num(7.0), before.nan_to_num(7.0))
    assert torch.equal(reference, rows[0])
    assert rows._version == version
    assert reference._version == 0


@EVERY
def test_same_bits_every_time(name: str) -> None:
    rows = kit.rows_of("plain", d=10_000, dtype=torch.float32)
    first = kit.built(name)(rows, rows[0] / 2, kit.rng())
    again = kit.built(name)(rows.clone(), rows[0] / 2, kit.rng())
    assert same_bits(first.vector, again.vector)
    for name_of, values in first.details.items():
        assert torch.equal(values.nan_to_num(-1), again.details[name_of].nan_to_num(-1))


@EVERY
def test_result_is_new_memory(name: str) -> None:
    rows = kit.rows_of("plain", dtype=torch.float32)
    before = rows.clone()
    kit.update(kit.built(name), rows).fill_(9)
    assert torch.equal(rows, before)


PROPERTIES: dict[str, Callable[[str], object]] = {
    "bounded": lambda name: test_one_huge_row_cannot_move_it_far(name, torch.float32, 0),
    "translation": lambda name: [
        test_moves_with_the_rows_and_the_reference(name, family) for family in ("plain", "sparse")
    ],
    "scale": lambda name: test_scales_with_the_rows(name, 2.0**-30),
    "unanimity": lambda name: test_unanimous_workers_get_their_way(name, torch.float64),
    "permutation": lambda name: test_order_of_workers_does_not_matter(name, "plain"),
}


@pytest.mark.parametrize(("part", "what"), kit.EXCUSED)
def test_nobody_is_excused_without_need(part: str, what: str) -> None:
    name = f"{part}, median" if part in MIXINGS else part
    with pytest.raises(AssertionError):
        PROPERTIES[what](name)


def test_robust_rules_are_those_that_one_row_cannot_own() -> None:
    for name in RULES:
        promises = not kit.excused(name, "bounded") and name not in kit.VETOED
        assert kit.built(name).robust == promises


@st.composite
def hostile_rounds(draw: st.DrawFn) -> tuple[str, Tensor]:
    name = draw(st.sampled_from(list(kit.specs())))
    aggregator = kit.built(name)
    n = draw(st.integers(max(kit.least_n(aggregator), kit.F + 1), 20))
    rows = torch.randn(n, draw(st.integers(1, 9)), generator=kit.rng(draw(st.integers(0, 99))))
    rows *= 10.0 ** draw(st.integers(-30, 30))
    values = st.sampled_from([0.0, -0.0, torch.nan, torch.inf, 1e-40, 1e30, -3e38, 1.0])
    for i in range(kit.F):
        rows[draw(st.integers(0, n - 1))] = draw(values) if i or draw(st.booleans()) else rows[0]
    return name, rows


@settings(max_examples=examples(150, few=55), deadline=None, derandomize=True)
@given(hostile_rounds())
def test_f_rows_of_anything_leave_it_finite(round_: tuple[str, Tensor]) -> None:
    name, rows = round_
    rows = rows.to(kit.DEVICE)
    aggregator = kit.built(name)
    # A rule that promises nothing may amplify rows beyond the type: then it says so.
    beyond = nullcontext() if aggregator.robust else suppress(AggregationError)
    aggregate = None
    with beyond:
        aggregate = aggregator(rows, None, kit.rng())
    if aggregate is not None:
        assert_consistent(aggregate, rows)


def test_bare_aggregator_has_no_tolerance_to_spend() -> None:
    rows = with_row(kit.rows_of("plain"), 0, torch.nan)
    assert Aggregator(kit.built("median").rule)(rows).dropped == (0,)
