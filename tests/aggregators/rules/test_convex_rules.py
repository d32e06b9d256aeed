"""MGDA, UPGrad and CAGrad: by hand, against solvers in d dimensions, and at their optimality conditions."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import (
    MGDA,
    AggregationError,
    Aggregator,
    CAGrad,
    CenteredClipping,
    Mean,
    UPGrad,
)
from varangian.aggregators.numeric import conic, simplex
from varangian.aggregators.rules import cagrad

CROSS = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
SQUARE = [[1.0, 0.0], [0.0, 1.0]]

# specification, rows, the vector, the weights or None
TABLE = {
    "mgda": ("mgda", SQUARE, [0.5, 0.5], [0.5, 0.5]),
    # w1 |x1|^2 = w2 |x2|^2
    "mgda, of two lengths": ("mgda", [[2, 0], [0, 1]], [0.4, 0.8], [0.2, 0.8]),
    # the inner product 5 is over the square 2 of the shorter
    "mgda, a corner": ("mgda", [[2, 3], [1, 1]], [1, 1], [0, 1]),
    "mgda, opposite": ("mgda", [[3, 0], [-1, 0]], [0, 0], [0.25, 0.75]),
    "mgda, a veto": ("mgda", [[3, 1], [0, 0], [2, 2]], [0, 0], [0, 1, 0]),
    "mgda, one": ("mgda", [[3, 1]], [3, 1], [1]),
    "upgrad, no conflict": ("upgrad", SQUARE, [0.5, 0.5], [0.5, 0.5]),
    # (1, 0) gets half of the second and becomes (1/2, 1/2), the second gets the first and becomes (0, 1)
    "upgrad": ("upgrad", [[1, 0], [-1, 1]], [0.25, 0.75], [1, 0.75]),
    # each becomes zero
    "upgrad, opposite": ("upgrad", [[3, 0], [-1, 0]], [0, 0], None),
    "upgrad, a row of zeros": ("upgrad", [[1, 0], [0, 0], [-1, 1]], [1 / 6, 0.5], None),
    # all on the way of the mean
    "cagrad": ("cagrad", SQUARE, [0.75, 0.75], [0.75, 0.75]),
    "cagrad over 1 + c": ({"cagrad": {"rescale": "1/(1+c)"}}, SQUARE, [0.5, 0.5], None),
    "cagrad over 1 + c^2": ({"cagrad": {"rescale": "1/(1+c^2)"}}, SQUARE, [0.6, 0.6], None),
    "cagrad, c = 0": ({"cagrad": {"c": 0.0}}, [[2, 0], [0, 1]], [1, 0.5], [0.5, 0.5]),
    # the second is the worst off wherever one looks, so all of the radius goes its way
    "cagrad, a corner": ("cagrad", [[2, 0], [0, 1]], [1, 0.5 + 1.25**0.5 / 2], None),
    # on the segment from 1/2 to 3/2 the best for the second
    "cagrad, opposite": ("cagrad", [[3, 0], [-1, 0]], [0.5, 0], None),
    # a larger radius reaches zero, which harms nobody
    "cagrad, far and opposite": ({"cagrad": {"c": 1.5}}, [[3, 0], [-1, 0]], [0, 0], None),
    # nothing is better for all: the mean conflicts with nobody
    "cagrad, nothing to gain": ("cagrad", CROSS, [0, 1 / 3], [1 / 3] * 3),
    "cagrad, the mean vanishes": ("cagrad", [[1, 2], [-1, -2]], [0, 0], None),
    "cagrad, one": ("cagrad", [[2, 0]], [3, 0], [1.5]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value(case: str, dtype: torch.dtype) -> None:
    spec, rows, vector, weights = TABLE[case]
    kit.assert_values(
        spec, 0, rows, None, vector, weights, dtype, slack=1e-6 if dtype == torch.float32 else 1e-7
    )


def agreeing(n: int, d: int) -> Tensor:
    return kit.plain(n, d).double()


def conflicting(n: int, d: int) -> Tensor:
    """No common direction: a third of the pairs conflict, and zero may be in the hull."""
    return torch.randn(n, d).double()


def crowded(n: int, d: int) -> Tensor:
    """Zero is well inside the hull: the rows lie in a plane, and point everywhere."""
    return (torch.randn(n, 2) @ torch.randn(2, d)).double()


def lopsided(n: int, d: int) -> Tensor:
    return conflicting(n, d) * torch.logspace(-3, 3, n)[:, None]


def repeated(n: int, d: int) -> Tensor:
    rows = conflicting(n, d)
    rows[1 : 1 + n // 3] = rows[0]
    return rows


FAMILIES = {f.__name__: f for f in (agreeing, conflicting, crowded, lopsided, repeated)}
FAMILY = pytest.mark.parametrize("family", FAMILIES)
SIZE = pytest.mark.parametrize(("n", "d"), [(2, 5), (5, 3), (7, 30), (15, 100), (30, 10)])


def vector(rule: MGDA | UPGrad | CAGrad, rows: Tensor) -> Tensor:
    return Aggregator(rule)(rows).vector


def dual_cone(rows: Tensor, v: Tensor) -> Tensor:
    """The projection of v on the vectors that conflict with no row, by Moreau: least squares over -rows."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    return v + torch.from_numpy(unit.T.numpy() @ nnls(unit.T.numpy(), -v.numpy())[0])


def worst_off(rows: Tensor, d: Tensor) -> float:
    return float((rows @ d).min())


@FAMILY
@SIZE
class TestMGDA:
    def test_helps_every_row_as_much_as_it_is_long(self, family: str, n: int, d: int) -> None:
        """Karush, Kuhn and Tucker: <x_i, v> >= |v|^2 for all rows, with equality where there is weight."""
        rows = FAMILIES[family](n, d)
        found = Aggregator(MGDA())(rows)
        assert found.weights.min() >= 0
        assert float(found.weights.sum()) == pytest.approx(1, rel=1e-12)
        gains = rows @ found.vector - found.vector.square().sum()
        room = 1e-9 * rows.norm(dim=1) * rows.norm(dim=1).min()
        assert (gains >= -room).all()
        assert (gains[found.weights > 0] <= room[found.weights > 0]).all()

    def test_no_optimiser_does_better(self, family: str, n: int, d: int) -> None:
        rows = FAMILIES[family](n, d).numpy()

        def squared(w: np.ndarray) -> tuple[float, np.ndarray]:
            return float(w @ rows @ rows.T @ w), 2 * rows @ (rows.T @ w)

        best = minimize(
            squared,
            np.full(n, 1 / n),
            jac=True,
            bounds=[(0, 1)] * n,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP",
        )
        found = float(vector(MGDA(), torch.from_numpy(rows)).square().sum())
        assert found <= best.fun + 1e-12 * (rows**2).sum(axis=1).min()


@FAMILY
@SIZE
class TestUPGrad:
    def test_is_the_mean_of_projections(self, family: str, n: int, d: int) -> None:
        rows = FAMILIES[family](n, d)
        wanted = torch.stack([dual_cone(rows, row) for row in rows]).mean(0)
        kit.assert_near(vector(UPGrad(), rows), wanted, 1e-8, rows)

    def test_conflicts_with_no_row(self, family: str, n: int, d: int) -> None:
        rows = FAMILIES[family](n, d)
        found = vector(UPGrad(), rows)
        assert (rows @ found >= -1e-9 * rows.norm(dim=1) * rows.norm(dim=1).max()).all()


@FAMILY
@SIZE
class TestCAGrad:
    @pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 1.5])
    def test_nothing_in_the_ball_is_better(self, family: str, n: int, d: int, c: float) -> None:
        """Every w bounds what the worst-off row can get by <Gw, g0> + c |g0| |Gw|: ours attains a bound."""
        rows = FAMILIES[family](n, d)
        found = Aggregator(CAGrad(c=c))(rows)
        mean, radius = rows.mean(0), c * rows.mean(0).norm()
        assert (found.vector - mean).norm() <= radius * (1 + 1e-9)
        moved = (found.weights - 1 / n).clamp(min=1e-300)
        points = [moved / moved.sum() @ rows, vector(MGDA(), rows)]
        bound = min(float(point @ mean + radius * point.norm()) for point in points)
        assert worst_off(rows, found.vector) >= bound - 1e-7 * rows.norm(dim=1).max() * mean.norm()

    @pytest.mark.parametrize("c", [0.5, 1.5])
    def test_agrees_with_cvxpy(self, family: str, n: int, d: int, c: float) -> None:
        """In what the worst-off row gets, which is what is solved for."""
        pytest.importorskip("cvxpy")
        rows = FAMILIES[family](n, d)
        exact, solved = (vector(CAGrad(c=c, solver=s), rows) for s in ("exact", "cvxpy"))  # type: ignore[arg-type]
        unit = rows.norm(dim=1).max() * rows.mean(0).norm()
        difference = (worst_off(rows, exact) - worst_off(rows, solved)) / unit
        assert -1e-7 <= difference <= 1e-3
        assert (exact - solved).norm() <= 2e-2 * rows.mean(0).norm()


class TestScale:
    @pytest.mark.parametrize("unit", [1e30, 1e-30])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("rule", [MGDA(), UPGrad(), CAGrad(), CAGrad(c=1.5), CAGrad(solver="cvxpy")])
    def test_units_do_not_matter(
        self, rule: MGDA | UPGrad | CAGrad, dtype: torch.dtype, unit: float
    ) -> None:
        if rule.requires(7, 0):
            pytest.skip("cvxpy is not installed")
        rows = conflicting(7, 30).to(dtype)
        found = vector(rule, unit * rows).double() / unit
        kit.assert_near(found, vector(rule, rows), 1e-5 if dtype == torch.float32 else 1e-9, rows)

    @pytest.mark.parametrize("rule", [MGDA(), UPGrad(), CAGrad()])
    def test_one_row_may_be_of_another_world(self, rule: MGDA | UPGrad | CAGrad) -> None:
        """Lengths 1 and 1e30: a projection of the short ones on the long one is as exact as ever."""
        rows = conflicting(5, 8)
        rows[0] *= 1e30
        found = Aggregator(rule)(rows)
        assert found.vector.isfinite().all()
        short = rows[1:] if isinstance(rule, MGDA) else rows
        assert found.vector.norm() <= 2 * short.norm(dim=1).max()
        if isinstance(rule, MGDA):
            gains = rows @ found.vector - found.vector.square().sum()
            assert (gains / rows.norm(dim=1) >= -1e-9 * found.vector.norm()).all()

    def test_one_long_row_owns_the_mean_rules(self) -> None:
        rows = agreeing(9, 20)
        rows[0] = 1e9
        assert vector(UPGrad(), rows).norm() > 1e8
        assert vector(CAGrad(), rows).norm() > 1e8
        assert not any(rule.robust for rule in (MGDA(), UPGrad(), CAGrad()))

    def test_without_conflict_upgrad_is_the_mean(self) -> None:
        rows = agreeing(9, 2000).abs()
        assert torch.equal(vector(UPGrad(), rows), Aggregator(Mean())(rows).vector)

    def test_cagrad_lies_between_the_mean_and_mgda(self) -> None:
        """The worst-off row gains as the ball grows, relative to the length of the step."""
        rows = conflicting(5, 30)
        steps = [vector(CAGrad(c=c), rows) for c in (0.0, 0.2, 0.5, 0.9, 0.99)]
        gains = [worst_off(rows, step) / float(step.norm()) for step in steps]
        assert all(b > a for a, b in pairwise(gains))
        best = vector(MGDA(), rows)
        assert gains[-1] < worst_off(rows, best) / float(best.norm()) * (1 + 1e-9)


def test_mgda_sees_the_least_gain() -> None:
    """The least (1 - 1e-7 w)^2 + w^2 is at almost 1e-7, where the slope is as small."""
    weights = Aggregator(MGDA())(torch.tensor([[1, 0], [1 - 1e-7, 1]], dtype=torch.float64)).weights
    assert weights.tolist() == pytest.approx([1 - 1e-7, 1e-7], rel=1e-5)


class TestOverflow:
    """An update that is longer than the rows may be more than their type holds."""

    @pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 3e38), (torch.float16, 6e4)])
    def test_is_reported(self, dtype: torch.dtype, large: float) -> None:
        rows = torch.full((4, 3), large, dtype=dtype)
        with pytest.raises(AggregationError, match=f"CAGrad.*the largest of {dtype}"):
            vector(CAGrad(c=0.9), rows)
        assert vector(CAGrad(c=0.9), rows / 4).isfinite().all()

    def test_a_reference_that_is_wider_than_the_rows(self) -> None:
        rows = torch.randn(5, 3, dtype=torch.float16)
        with pytest.raises(AggregationError, match=r"the largest of torch\.float16"):
            Aggregator(CenteredClipping(tau=1.0))(rows, torch.full((3,), 1e5))


class TestCancellation:
    @pytest.mark.parametrize("seed", range(5))
    def test_rows_whose_mean_is_rounding(self, seed: int) -> None:
        """The squared length of such a mean may well come out negative."""
        rows = torch.randn(9, 50, generator=kit.rng(seed))
        rows -= rows.mean(0)
        assert vector(CAGrad(), rows).norm() < 1e-5

    @pytest.mark.parametrize("rule", [MGDA(), UPGrad()])
    @pytest.mark.parametrize(("dtype", "left"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
    @pytest.mark.parametrize("seed", range(5))
    def test_what_should_vanish_does(
        self, rule: MGDA | UPGrad, dtype: torch.dtype, left: float, seed: int
    ) -> None:
        """Rounding of the products must not become weights of any size."""
        rows = torch.randn(9, 50, dtype=dtype, generator=kit.rng(seed))
        rows -= rows.mean(0)
        assert vector(rule, rows).norm() < left * rows.norm(dim=1).max()

    def test_cagrad_on_a_line_with_both_directions(self) -> None:
        """No vector helps all rows; float32 products leave no more than rounding of the one that would."""
        noise = torch.Generator().manual_seed(16)
        rows = torch.randn(43, 1, generator=noise) + torch.randn(1, generator=noise)
        rows = (rows * torch.logspace(-3, 3, 43)[:, None]).bfloat16()
        found = Aggregator(CAGrad(c=0.5), f=0)(rows).vector.double()
        assert found.abs() < 2 * rows.double().mean().abs()


class TestOptions:
    def test_c_is_a_radius(self) -> None:
        with pytest.raises(ValueError, match="`c` should be non-negative"):
            CAGrad(c=-0.1)

    def test_missing_cvxpy_is_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cagrad, "find_spec", lambda name: None)
        assert CAGrad().requires(5, 0) is None
        with pytest.raises(AggregationError, match=r"install varangian\[convex\]"):
            Aggregator(CAGrad(solver="cvxpy"))(torch.randn(5, 3))


class FakeProblem:
    """Remembers who was asked, and ends as it was told."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.status = ""

    def solve(self, *, solver: str) -> None:
        self.asked.append(solver)
        answer = self.answers[solver]
        if isinstance(answer, Exception):
            raise answer
        self.status = answer


class FakeError(Exception):
    pass


def fake_cvxpy(*installed: str) -> Any:
    error = SimpleNamespace(SolverError=FakeError)
    return SimpleNamespace(installed_solvers=lambda: [*installed], OPTIMAL="optimal", error=error)


class TestSolvers:
    def test_the_first_that_comes_to_an_optimum(self) -> None:
        problem = FakeProblem({"CLARABEL": "optimal_inaccurate", "ECOS": FakeError("no"), "SCS": "optimal"})
        conic._solve(fake_cvxpy("SCS", "OSQP", "ECOS", "CLARABEL"), problem)
        assert problem.asked == ["CLARABEL", "ECOS", "SCS"]

    def test_stops_at_an_optimum(self) -> None:
        problem = FakeProblem({"CLARABEL": "optimal", "SCS": "optimal"})
        conic._solve(fake_cvxpy("SCS", "CLARABEL"), problem)
        assert problem.asked == ["CLARABEL"]

    def test_says_what_every_solver_answered(self) -> None:
        problem = FakeProblem({"CLARABEL": "infeasible", "SCS": FakeError("out of iterations")})
        with pytest.raises(AggregationError, match=r"\(CLARABEL: infeasible; SCS: out of iterations\)"):
            conic._solve(fake_cvxpy("SCS", "CLARABEL"), problem)

    def test_says_when_there_is_none(self) -> None:
        with pytest.raises(AggregationError, match=r"\(none is installed\)"):
            conic._solve(fake_cvxpy("OSQP"), FakeProblem({}))


class TestSimplex:
    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("solve", [simplex.nonnegative, simplex._search])
    def test_is_least_squares_over_a_cone(
        self, seed: int, solve: Callable[[simplex.Array, simplex.Array], simplex.Array]
    ) -> None:
        generator = kit.rng(seed)
        n, d = (int(torch.randint(1, 20, (), generator=generator)) for _ in range(2))
        unit = torch.nn.functional.normalize(torch.randn(n, d, generator=generator).double(), dim=1)
        target = torch.randn(d, generator=generator).double()
        cosines, slope = simplex.positive((unit @ unit.T).numpy()), (unit @ target).numpy()
        found = torch.from_numpy(solve(cosines, slope))
        wanted, residual = nnls(unit.T.numpy(), target.numpy())
        assert found.min() >= 0
        assert float((found @ unit - target).norm()) == pytest.approx(residual, rel=1e-9, abs=1e-7)
        if np.linalg.matrix_rank(unit.numpy()) == n:
            assert np.allclose(found, wanted, atol=1e-7)

    def test_what_rounding_makes_indefinite_still_has_a_minimum(self) -> None:
        cosines = torch.ones(3, 3).double() - 1e-9 * torch.randn(3, 3).double().abs()
        repaired = torch.from_numpy(simplex.positive(cosines.numpy()))
        assert torch.linalg.eigvalsh(repaired).min() > 0
        assert torch.allclose(repaired, (cosines + cosines.T) / 2, atol=1e-8)

    @pytest.mark.parametrize("high", [2.0, 1e6])
    def test_root_of_a_line_is_found_at_once(self, high: float) -> None:
        looks: list[float] = []
        assert cagrad.root(lambda x: looks.append(x) or 3 - 2 * x, 0.0, high) == pytest.approx(1.5)
        assert len(looks) <= 4

    def test_root_of_a_bent_line(self) -> None:
        assert cagrad.root(lambda x: min(1 - x, 100 * (0.25 - x)), 0.0, 9.0) == pytest.approx(0.25)
        assert cagrad.root(lambda x: max(1 - x, 100 * (0.25 - x)), 0.0, 9.0) == pytest.approx(1)

    def test_a_root_outside_is_an_end(self) -> None:
        assert cagrad.root(lambda x: -1 - x, 0.0, 1.0) == 0
        assert cagrad.root(lambda x: 2 - x, 0.0, 1.0) == 1


class TestTorchJD:
    """Version 0.18; its CAGrad and UPGrad add their own regularisation to the Gram matrix."""

    def test_upgrad(self) -> None:
        theirs = pytest.importorskip("torchjd.aggregation")
        pytest.importorskip("quadprog")
        pytest.importorskip("qpsolvers")
        rows = conflicting(7, 30)
        projector = pytest.importorskip("torchjd.linalg").QuadprogProjector(reg_eps=1e-12, norm_eps=1e-12)
        kit.assert_near(vector(UPGrad(), rows), theirs.UPGrad(projector=projector)(rows), 1e-6, rows)

    def test_mgda(self) -> None:
        theirs = pytest.importorskip("torchjd.aggregation").MGDA(epsilon=1e-9, max_iters=3000)
        rows = agreeing(7, 30)
        kit.assert_near(vector(MGDA(), rows), theirs(rows), 1e-3, rows)

    def test_cagrad(self) -> None:
        theirs = pytest.importorskip("torchjd.aggregation").CAGrad(c=0.5)
        rows = agreeing(7, 30)
        kit.assert_near(vector(CAGrad(c=0.5), rows), theirs(rows), 1e-4, rows)
