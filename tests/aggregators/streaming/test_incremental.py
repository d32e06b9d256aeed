"""An aggregate that is begun early has the bits of one that is not, whoever comes, goes or is late."""

import math
from collections.abc import Callable

import pytest
import torch
from tests.aggregators.kit import specs
from torch import Tensor

from varangian.aggregators import AggregationError, aggregator_from
from varangian.aggregators.base import Aggregate
from varangian.aggregators.kernels import accumulate, native
from varangian.aggregators.pipeline import Aggregator
from varangian.aggregators.streaming.incremental import Incremental

N, F, SLICE = 15, 3, 1 << 14
STEP = SLICE * 4
D = 2 * STEP + SLICE + 77
EVERYONE = list(range(N))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "SLICE", SLICE)
    monkeypatch.setattr(native, "SLICE", SLICE)


@pytest.fixture(scope="module")
def matrix() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(N, D, generator=generator) + torch.randn(D, generator=generator)


REFERENCE = torch.linspace(-1, 1, D)


def built(name: str) -> Aggregator:
    return aggregator_from(specs()[name], "aggregator", f=F)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def masked(rows: Tensor, members: list[int]) -> list[Tensor | None]:
    return [row if i in members else None for i, row in enumerate(rows)]


def assert_same(found: Aggregate, wanted: Aggregate) -> None:
    assert torch.equal(found.vector, wanted.vector)
    assert found.dropped == wanted.dropped
    assert found.reference_weight == wanted.reference_weight
    assert (found.spread is None) == (wanted.spread is None)
    assert found.spread is None or math.isclose(found.spread, wanted.spread or 0.0, rel_tol=0)
    assert (found.weights is None) == (wanted.weights is None)
    if found.weights is not None and wanted.weights is not None:
        assert torch.equal(found.weights, wanted.weights)
    assert found.details.keys() == wanted.details.keys()
    for name, values in found.details.items():
        assert torch.equal(values.nan_to_num(7e7), wanted.details[name].nan_to_num(7e7))


def check(
    begun: Incremental, aggregator: Aggregator, rows: Tensor, present: list[int], faults: int
) -> None:
    """Finished from what was begun as from nothing, with the same rows and the same error."""

    def outcome(finish: Callable[[], Aggregate]) -> Aggregate | str:
        try:
            return finish()
        except AggregationError as error:
            return str(error)

    wanted = outcome(lambda: aggregator([rows[i] for i in present], REFERENCE, rng(), faults=faults))
    found = outcome(lambda: begun.finish(masked(rows, present), present, rng(), faults))
    if isinstance(found, str) or isinstance(wanted, str):
        assert found == wanted
    else:
        assert_same(found, wanted)


def begin(aggregator: Aggregator, rows: Tensor, members: list[int], faults: int = 0) -> Incremental:
    """As far as two steps."""
    begun = Incremental(aggregator, N, D, REFERENCE, faults=faults)
    begun.advance(masked(rows, members), STEP + 5)
    assert begun.lost or begun.columns == STEP
    begun.advance(masked(rows, members), 2 * STEP + SLICE)
    assert begun.lost or begun.columns == 2 * STEP
    return begun


@pytest.mark.parametrize("name", specs())
def test_everyone_comes(name: str, matrix: Tensor) -> None:
    aggregator = built(name)
    begun = begin(aggregator, matrix, EVERYONE)
    check(begun, aggregator, matrix, EVERYONE, 0)
    assert not begun.lost
    assert begun.columns == D, "the rest was done on top of what was done before"


@pytest.mark.parametrize("name", specs())
def test_some_leave(name: str, matrix: Tensor) -> None:
    """One dies and is known to, one proves faulty, and one is not there in the end."""
    aggregator = built(name)
    sent = matrix.clone()
    sent[[4, 9]] = torch.nan
    begun = begin(aggregator, sent, EVERYONE)
    begun.remove(9)
    check(begun, aggregator, sent, [i for i in EVERYONE if i not in (0, 4, 9)], 1)


@pytest.mark.parametrize("name", specs())
def test_some_are_late(name: str, matrix: Tensor) -> None:
    aggregator = built(name)
    check(begin(aggregator, matrix, EVERYONE[:-2]), aggregator, matrix, EVERYONE, 0)


@pytest.mark.parametrize("name", specs())
def test_one_was_faulty_before(name: str, matrix: Tensor) -> None:
    """And its f is spent, as foreseen or not."""
    aggregator = built(name)
    others = EVERYONE[1:]
    check(begin(aggregator, matrix, others, faults=1), aggregator, matrix, others, 1)
    check(begin(aggregator, matrix, others, faults=0), aggregator, matrix, others, 1)


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@pytest.mark.parametrize("name", ["krum", "median", "mean", "flag", "nnm, median", "trimmed_mean"])
def test_other_kernels(name: str, backend: str, matrix: Tensor) -> None:
    plain = built(name)
    aggregator = Aggregator(plain.rule, plain.mix, plain.f, backend=backend)
    begun = begin(aggregator, matrix, EVERYONE)
    check(begun, aggregator, matrix, EVERYONE, 0)
    subnormal = matrix.clone()
    subnormal[3, 7] = 1e-40
    check(begin(aggregator, subnormal, EVERYONE), aggregator, subnormal, EVERYONE, 0)


@pytest.mark.parametrize("name", ["krum", "median", "mean", "flag", "trimmed_mean"])
@pytest.mark.parametrize("value", [torch.nan, 3e38])
def test_what_kernels_do_not_take(name: str, value: float, matrix: Tensor) -> None:
    """A row that is not finite counts all the same; the aggregator drops it itself. Sums may overflow."""
    aggregator = built(name)
    sent = matrix.clone()
    sent[[3, 5, 7], 11] = value
    check(begin(aggregator, sent, EVERYONE), aggregator, sent, EVERYONE, 0)


@pytest.mark.parametrize("name", ["median", "mean", "trimmed_mean", "meamed", "phocas", "sign_majority"])
def test_columns_are_finished_as_they_come(name: str, matrix: Tensor) -> None:
    """In the end nothing is read again: what was overwritten meanwhile does not show."""
    aggregator = built(name)
    wanted = aggregator(matrix, REFERENCE).vector
    begun = begin(aggregator, matrix, EVERYONE)
    overwritten = matrix.clone()
    overwritten[:, : 2 * STEP] = 1e3
    assert torch.equal(begun.finish(list(overwritten), EVERYONE).vector, wanted)


def test_products_are_finished_as_they_come(matrix: Tensor) -> None:
    aggregator = built("multi_krum")
    begun = begin(aggregator, matrix, EVERYONE)
    torn = matrix.clone()
    torn[0, :STEP] += 1e3
    # The first row looks as it was when it came, so it is still chosen or not as then.
    wanted = aggregator(matrix, REFERENCE).weights
    found = begun.finish(list(torn), EVERYONE).weights
    assert found is not None
    assert wanted is not None
    assert torch.equal(found, wanted)


def test_one_more_than_f_faults(matrix: Tensor) -> None:
    aggregator = built("krum")
    with pytest.raises(AggregationError, match="provably invalid"):
        begin(aggregator, matrix, EVERYONE).finish(list(matrix), EVERYONE[:-4], rng(), F + 1)


def test_nothing_was_begun(matrix: Tensor) -> None:
    aggregator = built("krum")
    check(Incremental(aggregator, N, D, REFERENCE), aggregator, matrix, EVERYONE, 0)


def test_half_precision_and_double(matrix: Tensor) -> None:
    for name in ("median", "krum"):
        for dtype in (torch.bfloat16, torch.float64):
            aggregator = built(name)
            rows = matrix.to(dtype)
            check(begin(aggregator, rows, EVERYONE), aggregator, rows, EVERYONE, 0)


@pytest.mark.parametrize("name", ["median", "mean", "krum", "flag", "trimmed_mean", "nnm, flag"])
def test_narrow_rows_make_an_update_that_is_not(name: str, matrix: Tensor) -> None:
    """In memory of its own type; the same whether it was begun early or not."""
    aggregator, rows = built(name), matrix.bfloat16()
    early = Incremental(aggregator, N, D, REFERENCE, into=torch.zeros(D))
    early.advance(list(rows), 2 * STEP)
    found = early.finish(list(rows), EVERYONE, rng())
    late = Incremental(aggregator, N, D, REFERENCE, into=torch.zeros(D))
    assert_same(late.finish(list(rows), EVERYONE, rng()), found)
    wanted = aggregator(rows.float(), REFERENCE, rng()).vector
    assert found.vector.dtype == torch.float32
    assert (found.vector - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_memory_for_the_update(matrix: Tensor) -> None:
    for name in ("median", "mean", "krum"):
        aggregator, into = built(name), torch.zeros(D)
        found = Incremental(aggregator, N, D, REFERENCE, into=into).finish(list(matrix), EVERYONE, rng())
        assert found.vector.data_ptr() == into.data_ptr()
        assert_same(found, aggregator(matrix, REFERENCE, rng()))
        wide = Incremental(aggregator, N, D, into=into).finish(list(matrix.double()), EVERYONE, rng())
        assert wide.vector.dtype == torch.float64


def test_lost_work_is_not_gone_on_with(matrix: Tensor) -> None:
    begun = begin(built("median"), matrix, EVERYONE)
    begun.remove(2)
    assert begun.lost
    begun.advance(list(matrix), D)
    assert begun.columns == 2 * STEP
