"""The kernels in Triton against the definition: interpreted here, compiled where there is a GPU.

The interpreter has to be chosen before Triton is imported, so one test runs this file in a process of its
own; in the process that you started they skip.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.extent import patience
from torch import Tensor

from varangian.aggregators import Aggregator, Gram, Krum, Median, Rows
from varangian.aggregators.kernels import (
    BACKENDS,
    BackendRefused,
    NotFinite,
    after,
    backend_for,
    blocked,
    centres,
    native,
    reference,
)
from varangian.aggregators.kernels.gpu import backend as gpu
from varangian.aggregators.numeric.order import Majority, Nearest, Order, Window
from varangian.aggregators.numeric.weighted_order import WeightedMedian, WeightedWindow

INTERPRETED = gpu.interpreted()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

# The interpreter takes ten minutes for every case: it gets all of them when it is asked to.
FEW = INTERPRETED and os.environ.get("VARANGIAN_TRITON") != "all"
SIZES = [1, 3, 15, 17] if FEW else [1, 2, 3, 7, 15, 16, 17, 33, 64]
LENGTHS = [1, 63, 130, 63] if FEW else [1, 63, 1000, 1271]
SHAPES = [(n, LENGTHS[i % 4]) for i, n in enumerate(SIZES)] + ([] if FEW else [(15, 4097), (70, 63)])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

NO_TRITON = find_spec("triton") is None
RUNS = pytest.mark.skipif(
    NO_TRITON or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs Triton, and a GPU or its interpreter: see test_under_the_interpreter",
)
ON_DEVICE = pytest.mark.gpu if torch.cuda.is_available() and not INTERPRETED else RUNS
KERNELS = pytest.mark.usefixtures("poisoned_empty", "_not_noisy")
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
REFERENCE = pytest.mark.parametrize("with_reference", [False, True])


@pytest.fixture
def _not_noisy(recwarn: pytest.WarningsRecorder) -> None:
    """NumPy, which interprets, warns of the NaN that these tests make on purpose."""
    import warnings

    warnings.filterwarnings("ignore", category=RuntimeWarning)


def plain(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Without subnormal numbers, which the definition does not take for zero."""
    matrix = (torch.randn(d) + torch.randn(n, d)).to(DEVICE, dtype)
    return matrix.masked_fill(matrix.abs() < Rows.of(matrix).least_normal, 0)


def last(rows: Rows, given: bool) -> Tensor | None:
    return torch.randn(rows.d).to(rows.device) if given else None


def close(found: Tensor, wanted: Tensor) -> bool:
    rtol = 2 * torch.finfo(found.dtype).eps
    return torch.allclose(found.double(), wanted.double(), rtol=rtol, atol=2e-6)


@pytest.mark.slow
@pytest.mark.exhaustive  # takes longer than all other rules together; `make test` does not install Triton
@pytest.mark.timeout(patience(600))
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
@pytest.mark.skipif(NO_TRITON, reason="Triton is not installed")
def test_under_the_interpreter() -> None:
    here = Path(__file__)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            f"--timeout={patience(300)}",
            str(here),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=here.parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]
    assert " passed" in run.stdout


@pytest.mark.exhaustive
def test_triton_is_not_imported_before_a_verb_needs_it() -> None:
    code = "import sys, varangian.aggregators; sys.exit('triton' in sys.modules)"
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=path, check=False).returncode == 0


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes rows on the CPU")
def test_rows_on_the_cpu_are_refused_and_not_computed_elsewhere() -> None:
    with pytest.raises(BackendRefused, match="'triton' was requested, but it takes rows on a CUDA device"):
        Aggregator(Median(), backend="triton")(torch.randn(3, 4))


def test_what_follows_a_backend_takes_the_rows() -> None:
    rows = Rows.of(torch.ones(2, 3))
    wanted = next(b for b in BACKENDS[1:] if b.refuses(rows) is None)
    assert after(native, rows) is wanted
    assert after(reference, rows) is reference


@RUNS
@pytest.mark.parametrize(
    ("n", "d", "dtype", "why"),
    [
        (2, 3, torch.float64, "float64 rows would lose their precision"),
        (gpu.MOST_ROWS + 1, 1, torch.float32, f"at most {gpu.MOST_ROWS} rows, not {gpu.MOST_ROWS + 1}"),
    ],
)
def test_triton_refuses(n: int, d: int, dtype: torch.dtype, why: str) -> None:
    rows = Rows.of(torch.ones(n, d, dtype=dtype, device=DEVICE))
    assert why in str(gpu.refuses(rows))
    with pytest.raises(BackendRefused, match="'triton' was requested"):
        backend_for(rows, "triton")


def test_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("triton.__version__", "3.0.0")
    assert "or newer, not 3.0.0" in str(gpu.missing.__wrapped__())


def test_no_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    assert gpu.missing.__wrapped__() == "triton is not installed"


@ON_DEVICE
@KERNELS
@SHAPE
@DTYPE
@REFERENCE
def test_gram(shape: tuple[int, int], dtype: torch.dtype, with_reference: bool) -> None:
    rows = Rows.of(plain(*shape, dtype))
    r = last(rows, with_reference)
    found, wanted = gpu.gram(rows, r), reference.gram(rows, r)
    assert (found.dtype, found.device.type) == (torch.float64, "cpu")
    assert torch.equal(found, found.T)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@ON_DEVICE
@KERNELS
def test_distances_far_from_the_origin() -> None:
    """The common part is 1e4 times the spread, and gone before anything is multiplied."""
    for with_reference in (False, True):
        matrix = 1e4 * torch.randn(1271) + torch.randn(7, 1271)
        matrix[0], matrix[1], matrix[3] = 0, 1e-3 * matrix[1], matrix[2]
        rows = Rows.of(matrix.to(DEVICE))
        r = last(rows, with_reference)
        sums = gpu.accumulate(centres.Sums.nothing(rows), rows, r)
        assert not sums.lost
        found, wanted = (Gram.of(rows, r, backend).sqdist for backend in (gpu, reference))
        assert torch.allclose(found, wanted, rtol=1e-5)


@ON_DEVICE
@KERNELS
def test_distances_that_the_first_columns_do_not_tell() -> None:
    """Then all rows are read once more."""
    matrix = torch.randn(4, 5000)
    matrix[:, 4500:] += 1e4
    rows = Rows.of(matrix.to(DEVICE))
    assert gpu.accumulate(centres.Sums.nothing(rows), rows, None).lost
    found, wanted = (Gram.of(rows, None, backend).sqdist for backend in (gpu, reference))
    assert torch.allclose(found, wanted, rtol=1e-5)


@ON_DEVICE
@KERNELS
@REFERENCE
def test_sums_are_the_same_bits_again_and_in_pieces(
    monkeypatch: pytest.MonkeyPatch, with_reference: bool
) -> None:
    monkeypatch.setattr(gpu, "SLICE", 512)
    monkeypatch.setattr(gpu, "SPAN", 128)
    matrix = plain(7, 2 * gpu.SLICE + 77)
    rows = Rows.of(matrix)
    sums = centres.Sums.nothing(rows)
    r = last(rows, with_reference)
    whole = gpu.gram(rows, r)
    assert torch.equal(gpu.gram(rows, r), whole)
    for start in range(0, rows.d, gpu.SLICE):
        columns = slice(start, start + gpu.SLICE)
        gpu.accumulate(sums, Rows.of(matrix[:, columns]), None if r is None else r[columns])
    assert torch.equal(centres.about_reference(sums.products()), whole)


@ON_DEVICE
@KERNELS
def test_scratch_of_one_slice_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SLICE", 512)
    monkeypatch.setattr(gpu, "SPAN", 128)
    rows = Rows.of(plain(3, 2 * gpu.SLICE + 5))
    whole = gpu.gram(rows, None)
    monkeypatch.setattr(gpu, "SCRATCH", 1)
    assert torch.equal(gpu.gram(rows, None), whole)


@ON_DEVICE
@KERNELS
@SHAPE
@DTYPE
@REFERENCE
def test_combine(shape: tuple[int, int], dtype: torch.dtype, with_reference: bool) -> None:
    rows, k = Rows.of(plain(*shape, dtype)), [1, 3, 17][SHAPES.index(shape) % 3]
    coords = torch.rand(k, shape[0] + 1).double() / shape[0]
    r = last(rows, with_reference)
    found, wanted = gpu.combine(coords, rows, r), reference.combine(coords, rows, r)
    assert (found.shape, found.dtype) == ((k, shape[1]), dtype)
    assert close(found, wanted)


@ON_DEVICE
@KERNELS
def test_rows_without_weight_are_not_read() -> None:
    matrix = plain(4, 100)
    matrix[2] = torch.nan
    coords = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(gpu.combine(coords, Rows.of(matrix), None)[0], matrix[1])
    coords[0, 2] = 1e-9
    with pytest.raises(NotFinite):
        gpu.combine(coords, Rows.of(matrix), None)


@ON_DEVICE
@KERNELS
def test_no_row_has_weight() -> None:
    rows = Rows.of(plain(3, 70))
    r = last(rows, True)
    coords = torch.tensor([[0.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    assert torch.equal(gpu.combine(coords, rows, r)[0], 2 * r)
    assert not gpu.combine(0 * coords, rows, r).any()


def orders(n: int) -> list[Order]:
    cut = (n - 1) // 3
    middle = Window((n - 1) // 2, n // 2 + 1)
    return [
        middle,
        Window(cut, n - cut),
        Window(0, n),
        Nearest(n - cut, middle.lo, middle.hi),
        Majority(0.5),
        *([Nearest(1, cut, n - cut)] if n != 2 else []),  # both would be as near but for rounding
    ]


@ON_DEVICE
@KERNELS
@pytest.mark.parametrize("n", SIZES if FEW else [*SIZES, 70])
@DTYPE
@pytest.mark.parametrize("mixed", [False, True])
def test_columnwise(n: int, dtype: torch.dtype, mixed: bool) -> None:
    rows = Rows.of(plain(n, LENGTHS[n % 4], dtype))
    coords = torch.rand(n, n + 1).double() / n if mixed else None
    r = last(rows, mixed)
    for rule in orders(n) if n <= 17 else orders(n)[::3]:
        found = gpu.columnwise(rule, coords, rows, r)
        assert (found.shape, found.dtype) == ((rows.d,), dtype)
        if mixed and isinstance(rule, Nearest | Majority):
            continue  # rounding of the points decides which are nearest: the next test
        assert close(found, reference.columnwise(rule, coords, rows, r)), rule


@ON_DEVICE
@KERNELS
def test_columnwise_over_mixed_points_is_that_of_the_combined_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "CHUNK", 100)  # so that there are several
    rows = Rows.of(plain(7, 250))
    coords, r = torch.randn(5, 8).double(), last(rows, True)
    points = Rows.of(gpu.combine(coords, rows, r))
    for rule in orders(5):
        found, wanted = gpu.columnwise(rule, coords, rows, r), gpu.columnwise(rule, None, points, None)
        assert torch.equal(found, wanted)


@ON_DEVICE
@KERNELS
def test_other_rules_are_left_to_torch() -> None:
    rows = Rows.of(plain(7, 250))
    found = gpu.columnwise(lambda block: block.amax(dim=0), None, rows, None)
    assert torch.equal(found, torch.stack(rows.vectors).amax(dim=0))


@ON_DEVICE
@KERNELS
@pytest.mark.parametrize("n", SIZES if FEW else [*SIZES, 48, 49])
@DTYPE
@pytest.mark.parametrize("mixed", [False, True])
def test_columns_by_weight(n: int, dtype: torch.dtype, mixed: bool) -> None:
    rows = Rows.of(plain(n, LENGTHS[n % 4], dtype))
    coords = torch.rand(n, n + 1).double() / n if mixed else None
    r, p = last(rows, mixed), tuple((0.1 + torch.rand(n).double()).tolist())
    p = tuple(share / sum(p) for share in p)
    for rule in (
        WeightedWindow(p, 0.2),
        WeightedMedian(p, midpoint=True),
        WeightedMedian(p, midpoint=False),
    ):
        found = gpu.columnwise(rule, coords, rows, r)
        assert (found.shape, found.dtype) == ((rows.d,), dtype)
        assert close(found, reference.columnwise(rule, coords, rows, r)), rule


VERBS: dict[str, Callable[[Rows], Tensor]] = {
    "gram": lambda rows: gpu.gram(rows, None),
    "combine": lambda rows: gpu.combine(torch.ones(1, len(rows) + 1).double(), rows, None),
    "window": lambda rows: gpu.columnwise(Window(1, 2), None, rows, None),
    "nearest": lambda rows: gpu.columnwise(Nearest(2, 0, 1), None, rows, None),
    "majority": lambda rows: gpu.columnwise(Majority(1.0), None, rows, None),
    "by weight": lambda rows: gpu.columnwise(
        WeightedMedian((1 / len(rows),) * len(rows), midpoint=True), None, rows, None
    ),
}


@ON_DEVICE
@KERNELS
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@DTYPE
@pytest.mark.parametrize("n", [3] if FEW else [3, 66])
def test_what_is_not_finite_is_noticed(verb: str, value: float, dtype: torch.dtype, n: int) -> None:
    matrix = plain(n, 130, dtype)
    VERBS[verb](Rows.of(matrix))
    matrix[1, 129] = value
    with pytest.raises(NotFinite):
        VERBS[verb](Rows.of(matrix))


@ON_DEVICE
@KERNELS
def test_squares_that_float32_has_no_room_for() -> None:
    rows = Rows.of(torch.full((3, 70), 1e30, device=DEVICE))
    assert torch.allclose(gpu.gram(rows, None)[:3, :3], torch.full((3, 3), 70e60, dtype=torch.float64))


@ON_DEVICE
@KERNELS
@pytest.mark.parametrize("verb", VERBS)
@DTYPE
def test_subnormal_numbers_count_as_zero(verb: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    matrix = torch.full((3, 70), tiny / 2, dtype=dtype, device=DEVICE)
    matrix[1] *= -1
    assert matrix.any()
    if dtype == torch.float16:  # computed in float32, where they are ordinary numbers
        assert VERBS[verb](Rows.of(matrix.abs())).any()
        return
    assert not VERBS[verb](Rows.of(matrix)).any()
    assert VERBS[verb](Rows.of(torch.full_like(matrix, 4 * tiny))).any()


@ON_DEVICE
@KERNELS
@DTYPE
def test_rows_that_lie_anywhere(dtype: torch.dtype) -> None:
    """Views at odd places, views of every other column, vectors of their own: what is read is the same."""
    wide = plain(5, 2 * 333 + 3, dtype)
    matrix = torch.stack([row[:333] for row in wide])
    elsewhere: list[tuple[str, Sequence[Tensor]]] = [
        ("own", [row.clone() for row in matrix]),
        ("views", wide[:, :333]),
        ("odd", [torch.cat([row[:1], row])[1:] for row in matrix]),
        ("every other", [row.repeat_interleave(2)[::2] for row in matrix]),
    ]
    coords = torch.rand(2, 6).double()
    for name, vectors in elsewhere:
        rows, wanted = Rows.of(vectors), Rows.of(matrix)
        assert torch.equal(gpu.gram(rows, None), gpu.gram(wanted, None)), name
        assert torch.equal(gpu.combine(coords, rows, None), gpu.combine(coords, wanted, None)), name
        median = Window(2, 3)
        assert torch.equal(
            gpu.columnwise(median, None, rows, None), gpu.columnwise(median, None, wanted, None)
        ), name


@ON_DEVICE
@KERNELS
@pytest.mark.parametrize("rule", [Median(), Krum(f=2)])
def test_a_round_of_triton(rule: Median | Krum) -> None:
    rows = plain(7, 1000)
    rows[3, 5] = torch.nan
    found = Aggregator(rule, f=2, backend="triton")(rows)
    wanted = Aggregator(rule, f=2, backend="blocked")(rows)
    assert found.dropped == wanted.dropped == (3,)
    assert torch.allclose(found.vector, wanted.vector, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_is_the_fastest_on_a_gpu(dtype: torch.dtype) -> None:
    rows = Rows.of(torch.randn(3, 70, device="cuda", dtype=dtype))
    assert backend_for(rows) is gpu
    assert backend_for(Rows.of(rows.vectors[0].double()[None])) is not blocked
