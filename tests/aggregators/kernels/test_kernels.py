"""Every backend against the definition, on shapes that fit nothing."""

from types import SimpleNamespace

import pytest
import torch
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import Aggregator, Median, Rows
from varangian.aggregators.kernels import (
    BACKENDS,
    Backend,
    BackendRefused,
    backend_for,
    blocked,
    centres,
    dispatch,
    kernels_in_use,
    library,
    native,
    reference,
)
from varangian.aggregators.numeric.weighted_order import WeightedMedian, WeightedWindow

SHAPES = [(3, 63), (8, 1000), (15, 1271), (5, 4096), (4, 65_537)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

TAKEN = [
    pytest.param(backend, dtype, id=f"{backend.NAME}-{dtype}".replace("torch.", ""))
    for backend in BACKENDS
    for dtype in DTYPES
    if backend.refuses(Rows.of(torch.ones(1, 1, dtype=dtype, device=kit.DEVICE))) is None
]
"""What a backend refuses is not its to compute; that someone takes every type is tested below."""

BACKEND = pytest.mark.parametrize(("backend", "dtype"), TAKEN)
SHAPE = pytest.mark.parametrize("shape", SHAPES)

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def rows_for(shape: tuple[int, int], dtype: torch.dtype) -> Rows:
    return Rows.of(kit.plain(*shape).to(kit.DEVICE, dtype))


def last(rows: Rows) -> Tensor:
    return torch.randn(rows.d).to(rows.device, rows.working_dtype)


@BACKEND
@SHAPE
@pytest.mark.parametrize("with_reference", [False, True])
def test_gram(backend: Backend, shape: tuple[int, int], dtype: torch.dtype, with_reference: bool) -> None:
    rows = rows_for(shape, dtype)
    r = last(rows) if with_reference else None
    found, wanted = backend.gram(rows, r), reference.gram(rows, r)
    assert (found.dtype, found.device.type) == (torch.float64, "cpu")
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@BACKEND
@SHAPE
@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("weights", ["many", "one row", "nothing"])
def test_combine(
    backend: Backend, shape: tuple[int, int], dtype: torch.dtype, with_reference: bool, weights: str
) -> None:
    rows = rows_for(shape, dtype)
    coords = torch.rand(2, shape[0] + 1).double() / shape[0]
    if weights != "many":
        coords[:, :-1] = 0
        coords[:, 1] = float(weights == "one row")
    r = last(rows) if with_reference else None
    found, wanted = backend.combine(coords, rows, r), reference.combine(coords, rows, r)
    assert (found.shape, found.dtype) == ((2, shape[1]), dtype)
    assert torch.allclose(found.double(), wanted.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    into = torch.full_like(found, torch.nan)
    assert backend.combine(coords, rows, r, into) is into
    assert torch.equal(into, found)


@BACKEND
@SHAPE
@pytest.mark.parametrize("mixed", [False, True])
def test_columnwise(backend: Backend, shape: tuple[int, int], dtype: torch.dtype, mixed: bool) -> None:
    rows = rows_for(shape, dtype)
    coords = torch.rand(3, shape[0] + 1).double() / shape[0] if mixed else None
    r = last(rows) if mixed else None
    found = backend.columnwise(Median().columnwise, coords, rows, r)
    wanted = reference.columnwise(Median().columnwise, coords, rows, r)
    assert (found.shape, found.dtype) == ((shape[1],), dtype)
    assert torch.allclose(found.double(), wanted.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@BACKEND
@SHAPE
@pytest.mark.parametrize("mixed", [False, True])
def test_columns_by_weight(
    backend: Backend, shape: tuple[int, int], dtype: torch.dtype, mixed: bool
) -> None:
    n, rows = shape[0], rows_for(shape, dtype)
    points = 3 if mixed else n
    coords, r = torch.rand(3, n + 1).double() / n if mixed else None, last(rows) if mixed else None
    p = tuple(2 * (i + 1) / (points * (points + 1)) for i in range(points))
    for rule in (WeightedWindow(p, 0.2), WeightedMedian(p, midpoint=True)):
        found = backend.columnwise(rule, coords, rows, r)
        wanted = reference.columnwise(rule, coords, rows, r)
        assert (found.shape, found.dtype) == ((shape[1],), dtype)
        assert torch.allclose(found.double(), wanted.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def specials(dtype: torch.dtype) -> dict[str, tuple[float, bool, bool]]:
    """An entry, whether it is finite, whether it is subnormal."""
    info = torch.finfo(dtype)
    small = dtype != torch.float16  # float32, where those are computed, has room for its subnormal numbers
    below = torch.tensor(info.tiny, dtype=dtype).nextafter(torch.tensor(0.0, dtype=dtype)).item()
    return {
        "zero": (0.0, True, False),
        "minus zero": (-0.0, True, False),
        "smallest normal": (info.tiny, True, False),
        "minus smallest normal": (-info.tiny, True, False),
        "largest subnormal": (below, True, small),
        "minus largest subnormal": (-below, True, small),
        "smallest subnormal": (info.tiny * info.eps, True, small),
        "minus smallest subnormal": (-info.tiny * info.eps, True, small),
        "largest": (info.max, dtype != torch.float64, False),
        "lowest": (info.min, dtype != torch.float64, False),
        "infinity": (torch.inf, False, False),
        "minus infinity": (-torch.inf, False, False),
        "NaN": (torch.nan, False, False),
    }


@BACKEND
@pytest.mark.parametrize("special", specials(torch.float32))
@pytest.mark.parametrize("d", [1, 7, 64, 4099])
def test_screen(backend: Backend, dtype: torch.dtype, special: str, d: int) -> None:
    value, finite, subnormal = specials(dtype)[special]
    for place in {0, d // 2, d - 1}:
        matrix = torch.ones(4, d, dtype=dtype, device=kit.DEVICE)
        matrix[2, place] = value
        found = backend.screen(Rows.of(matrix))
        assert found[0].tolist() == [True, True, finite, True]
        assert found[1].tolist() == [False, False, subnormal, False]


def test_screen_of_many_strips() -> None:
    rows = torch.randn(3, 2 * blocked.STRIP + 5)
    rows[0, blocked.STRIP] = torch.nan
    rows[1, 2 * blocked.STRIP + 4] = -1e-40
    finite, subnormal = blocked.screen(Rows.of(rows))
    assert finite.tolist() == [False, True, True]
    assert subnormal[1:].tolist() == [True, False]


def test_finite_row_whose_sum_is_not() -> None:
    rows = torch.full((2, 10), 3e38)
    assert blocked.screen(Rows.of(rows))[0].all()


def test_float64_row_whose_square_leaves_no_room() -> None:
    """1e306 is a finite square, and the sum of a few hundred of them is not."""
    rows = torch.tensor([[1e153, 1.0], [2.0**499, 1.0]], dtype=torch.float64)
    assert reference.screen(Rows.of(rows))[0].tolist() == [False, True]


def test_requested_backend_that_refuses_is_an_error() -> None:
    rows = Rows.of(torch.randn(2, 3, dtype=torch.float64))
    assert backend_for(rows) is reference
    with pytest.raises(BackendRefused, match="'blocked' was requested, but float64 rows would lose"):
        backend_for(rows, "blocked")


def test_every_type_is_taken() -> None:
    assert {param.values[1] for param in TAKEN} == set(DTYPES)
    takers = {param.values[0] for param in TAKEN}
    assert {blocked, reference} <= takers
    assert (native in takers) == (native.library() is not None)


def test_fastest_that_is_there_is_taken() -> None:
    rows = Rows.of(torch.randn(2, 3))
    assert backend_for(rows) is (native if native.library() else blocked)


@pytest.mark.parametrize("abi", [library.ABI, library.ABI - 1])
def test_kernels_of_other_sources_are_not_used_and_that_is_said(
    abi: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    functions: dict[str, object] = {f"varangian_{verb}_v1": None for verb in library.VERBS}
    whole = SimpleNamespace(varangian_abi=lambda: library.ABI, varangian_level=lambda: 1, **functions)
    assert library.is_current(whole)  # type: ignore[arg-type]
    if abi == library.ABI:
        functions.popitem()
    old = SimpleNamespace(varangian_abi=lambda: abi, varangian_level=lambda: 1, **functions)
    monkeypatch.setattr(library.ctypes, "CDLL", lambda path: old)
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: SimpleNamespace(origin="old.so"))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    assert library.opened.__wrapped__() == (None, "old.so was built from the sources of another version")
    assert "old.so is of other sources than this version" in caplog.text


def test_each_version_of_compiled_kernels_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for level in (1, 3):
        monkeypatch.setattr(dispatch, "level", lambda level=level: level)
        assert kernels_in_use() == ("blocked" if native.library() is None else f"native v{level}")
    monkeypatch.setattr(native, "library", lambda: None)
    assert kernels_in_use() == "blocked"


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(BackendRefused, match=r"There is no backend 'cuda9'\. Known: .*reference"):
        Aggregator(Median(), backend="cuda9")(torch.randn(3, 4))


def test_products_of_less_than_float32_are_refused() -> None:
    rows = Rows.of(torch.randn(2, 3))
    assert blocked.refuses(rows) is None
    torch.set_float32_matmul_precision("medium")
    try:
        assert "products of less than float32" in str(blocked.refuses(rows))
        # The kernels in C multiply on their own.
        assert backend_for(rows) is (native if native.library() else reference)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_squares_about_the_reference_are_those_of_all_products() -> None:
    points = kit.plain(7, 40).double()
    products = points @ points.T
    squares = centres.squares_about_reference(products.numpy())
    assert squares.tolist() == centres.about_reference(products).diagonal().tolist()
