"""One test for each claim of a paper that we rely on, and where we deviate from one."""

from math import ceil

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tests.aggregators import kit
from tests.aggregators.direct import Direct
from torch import Tensor

from varangian.aggregators import (
    NNM,
    Aggregator,
    Bucketing,
    CenteredClipping,
    Clipping,
    Flag,
    GeometricMedian,
    Gram,
    Krum,
    Mean,
    Median,
    Rows,
    UnitMean,
)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def scores(rows: Tensor, neighbours: int, power: int) -> Tensor:
    return torch.cdist(rows, rows).sort(dim=1).values[:, 1 : neighbours + 1].pow(power).sum(dim=1)


def chosen(rule: Krum, rows: list[float] | Tensor) -> list[int]:
    given = rows if isinstance(rows, Tensor) else torch.tensor(rows)[:, None]
    weights = Aggregator(rule)(given).weights
    return weights.nonzero().flatten().tolist()


class TestKrum:
    """Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017."""

    def test_score_is_over_the_n_minus_f_minus_2_closest(self) -> None:
        """Section 4: the sum over the n - f - 2 closest vectors to V_i. Over one more, 12 would win."""
        rows = [0.0, 4.0, 12.0, 13.0, 14.0, 19.0]
        assert scores(torch.tensor(rows)[:, None], 3, 2).argmin() == 4
        assert scores(torch.tensor(rows)[:, None], 4, 2).argmin() == 2
        assert chosen(Krum(f=1), rows) == [4]

    def test_distances_are_squared(self) -> None:
        """Section 4: s(i) is the sum of ||V_i - V_j||^2. Not squared, the third row would win."""
        rows = torch.tensor([[7, 4], [7, 6], [7, 5], [0, 0], [0, 4], [1, 6], [2, 4]]).double()
        assert scores(rows, 3, 2).argmin() == 4
        assert scores(rows, 3, 1).argmin() == 2
        assert chosen(Krum(f=2), rows) == [4]

    def test_ties_go_to_the_smallest_identifier(self) -> None:
        """Section 4: if two or more workers have the minimal score, the smallest identifier is used."""
        assert chosen(Krum(f=1), [1.0, 1.0, 1.0, 1.0, 9.0]) == [0]
        assert chosen(Krum(f=1), [9.0, 2.0, 1.0, 3.0, 2.0, 2.0]) == [1]


class TestGeometricMedian:
    """Pillutla et al., "Robust Aggregation for Federated Learning", IEEE TSP 2022."""

    @pytest.mark.parametrize("family", ["plain", "lopsided", "sparse", "low_rank"])
    @pytest.mark.parametrize("n", [3, 8, 15, 40])
    def test_is_where_the_unit_vectors_cancel(self, family: str, n: int) -> None:
        """Eq. 4: it minimises sum ||z - w_i||; zero is then a subgradient: the unit vectors sum to no more
        than the number of rows at z.
        """
        rows = kit.FAMILIES[family](n, 20).double()
        z = Aggregator(GeometricMedian())(rows).vector
        apart = rows - z
        away = apart.norm(dim=1) > 1e-7 * rows.norm(dim=1).max()
        pull = torch.nn.functional.normalize(apart[away], dim=1).sum(dim=0).norm()
        assert pull <= (~away).sum() + 1e-5

    def test_escapes_from_a_row_that_is_not_the_median(self) -> None:
        """Section 4: smoothing keeps Weiszfeld's weights finite. Here it starts on the second row."""
        rows = torch.tensor([[-1, 0], [0, 0], [1, 0], [5, 100], [6, 100]]).double()
        apart = rows - Aggregator(GeometricMedian())(rows).vector
        assert torch.nn.functional.normalize(apart, dim=1).sum(dim=0).norm() < 1e-6

    @pytest.mark.parametrize("n", [15, 40])
    def test_newton_ends_what_weiszfeld_takes_many_steps_for(self, n: int) -> None:
        """Weiszfeld's iteration alone takes over sixty for these rows."""
        rows = kit.lopsided(n, 300).double()
        soon, late = (GeometricMedian(iterations=steps) for steps in (12, 1000))
        kit.assert_near(Aggregator(soon)(rows).vector, Aggregator(late)(rows).vector, 1e-9)

    @pytest.mark.parametrize("seed", range(5))
    def test_no_optimiser_does_better(self, seed: int) -> None:
        rows = kit.plain(7, 4).double() * (1 + 5 * (torch.arange(7) == seed))[:, None]

        def cost(z: np.ndarray) -> float:
            return float(np.linalg.norm(rows.numpy() - z, axis=1).sum())

        best = minimize(cost, rows.mean(0).numpy(), method="Nelder-Mead", options={"maxiter": 4000})
        assert cost(Aggregator(GeometricMedian())(rows).vector.numpy()) <= best.fun * (1 + 1e-9)

    def test_copies_of_a_median(self) -> None:
        """A row is the median when the pull of the others is no more than its copies; found exactly."""
        rows = torch.cat([torch.zeros(4, 5), torch.randn(5, 5)]).double()
        assert Aggregator(GeometricMedian())(rows).vector.eq(0).all()

    def test_a_far_row_pulls_with_unit_force_only(self) -> None:
        """Section 4: breakdown point 1/2. From the mean, a few steps of Weiszfeld would not come back."""
        rows = kit.plain(9, 10).double()
        direction = torch.nn.functional.normalize(torch.randn(10), dim=0).double()
        far, farther = (torch.cat([rows, length * direction[None]]) for length in (1e9, 1e30))
        found = [Aggregator(GeometricMedian())(points).vector for points in (far, farther)]
        kit.assert_near(found[1], found[0], 1e-6)

    def test_almost_half_of_the_rows_may_be_anywhere(self) -> None:
        honest = kit.plain(8, 10).double()
        rows = torch.cat([honest, 1e20 + torch.randn(7, 10)])
        centre = honest.mean(0)
        radius = (honest - centre).norm(dim=1).max()
        assert (Aggregator(GeometricMedian())(rows).vector - centre).norm() < 15 * radius


class TestCenteredClipping:
    """Karimireddy et al., "Learning from History for Byzantine Robust Optimization", ICML 2021."""

    @pytest.mark.parametrize("tau", [0.5, 3.0, 100.0, None])
    @pytest.mark.parametrize("iterations", [1, 2, 7])
    def test_is_the_loop_in_d_dimensions(self, tau: float | None, iterations: int) -> None:
        """Algorithm 2: v <- v + (1/n) sum (x_i - v) min(1, tau / ||x_i - v||), from the last v."""
        rows, last = kit.plain(9, 30).double(), torch.randn(30).double()
        v = last
        for _ in range(iterations):
            offsets = rows - v
            lengths = offsets.norm(dim=1, keepdim=True)
            radius = np.median(lengths) if tau is None else tau
            v = v + (offsets * (radius / lengths).clamp(max=1)).mean(0)
        rule = CenteredClipping(tau=tau, iterations=iterations)
        assert torch.allclose(Aggregator(rule)(rows, last).vector, v, atol=1e-10)

    def test_one_row_moves_it_by_tau_over_n(self) -> None:
        """Section 4: the influence of a bad worker is at most tau / n in one iteration."""
        rows, last = kit.plain(10, 30).double(), torch.zeros(30).double()
        changed = rows.clone()
        changed[0] = 1e15
        rule = Aggregator(CenteredClipping(tau=2.0))
        moved = rule(changed, last).vector - rule(rows, last).vector
        assert moved.norm() <= 2 * 2.0 / 10 + 1e-9


class TestMixings:
    def test_nearest_neighbours(self) -> None:
        """Allouah et al., "Fixing by Mixing", AISTATS 2023, Algorithm 2: y_i averages the n - f vectors
        closest to x_i.
        """
        rows, f = kit.plain(9, 30).double(), 2
        nearest = torch.cdist(rows, rows).argsort(dim=1)[:, : 9 - f]
        wanted = rows[nearest].mean(dim=1)
        mixed = NNM(f=f).mix(Gram.of(Rows.of(rows)), kit.rng()) @ rows
        assert torch.allclose(mixed, wanted)
        found = Aggregator(Median(), (NNM(f=f),))(rows).vector
        assert torch.allclose(found, wanted.median(dim=0).values)

    @pytest.mark.parametrize(("n", "s"), [(15, 2), (15, 4), (6, 3), (3, 5)])
    def test_buckets_partition_the_workers(self, n: int, s: int) -> None:
        """Karimireddy et al., "... via Bucketing", ICLR 2022, Algorithm 1: a random permutation, split into
        ceil(n / s) groups whose means replace the inputs.
        """
        mixing = Bucketing(s=s).mix(Gram.of(Rows.of(torch.randn(n, 2))), kit.rng())
        sizes = (mixing > 0).sum(dim=1)
        assert len(mixing) == ceil(n / s)
        assert (mixing > 0).sum(dim=0).eq(1).all(), "every worker is in one group"
        assert sorted(sizes.tolist(), reverse=True)[:-1] == [s] * (len(sizes) - 1)
        assert torch.allclose(mixing.sum(dim=1), torch.ones(len(mixing)).double())

    @pytest.mark.parametrize("about", ["origin", "reference"])
    def test_clipping(self, about: str) -> None:
        """x min(1, C / ||x||), from the origin or from the reference."""
        rows, last = kit.lopsided(9, 30).double(), torch.randn(30).double()
        centre = last if about == "reference" else torch.zeros(30).double()
        offsets = rows - centre
        wanted = centre + offsets * (2.0 / offsets.norm(dim=1, keepdim=True)).clamp(max=1)
        clipping = Clipping(radius=2.0, about=about)  # type: ignore[arg-type]
        found = Aggregator(Mean(), (clipping,))(rows, last).vector
        assert torch.allclose(found, wanted.mean(dim=0))

    def test_static_clipping_is_not_robust(self) -> None:
        """Allouah et al., "Adaptive Gradient Clipping ...", ICLR 2025: with a fixed radius, honest workers
        who agree are moved, so that no multiple of their (zero) variance bounds the error.
        """
        rows = torch.full((5, 4), 10.0)
        found = Aggregator(Median(), (Clipping(radius=1.0),))(rows).vector
        assert (found - 10).norm() > 1


class TestUnitMean:
    def test_f_rows_move_it_by_f_over_n_of_a_typical_length(self) -> None:
        rows = kit.plain(15, 40).double()
        unit = torch.nn.functional.normalize(rows, dim=1)
        rows[12:] = -rows[:12].mean(0) * rows[:12].norm(dim=1).median()
        rows[12:] *= rows[:12].norm(dim=1).median() / rows[12:].norm(dim=1, keepdim=True)
        typical = rows.norm(dim=1).quantile(0.5)
        honest = unit[:12].sum(0) / 15 * typical
        assert (Aggregator(UnitMean())(rows).vector - honest).norm() <= 3 / 15 * typical + 1e-9


class TestFlag:
    """Almasi et al., "Flag Aggregator", ICLR 2024, and the authors' released code."""

    @pytest.mark.parametrize("n", [5, 6, 15, 16])
    def test_subspace_has_half_of_n_plus_1_dimensions(self, n: int) -> None:
        """Algorithm 1: m = ceil((n + 1) / 2)."""
        rows = kit.plain(n, 60)
        given = Aggregator(Flag(components=ceil((n + 1) / 2)))(rows).vector
        assert torch.equal(Aggregator(Flag())(rows).vector, given)
        assert not torch.allclose(Aggregator(Flag(components=n // 2))(rows).vector, given)

    @pytest.mark.parametrize("lam", [0.0, 4.0, 15.0])
    @pytest.mark.parametrize("seed", range(4))
    def test_objective_never_increases(self, lam: float, seed: int) -> None:
        """Section 2: IRLS minimises a majoriser of sum sqrt(1 - v) + lam R in every step."""
        rows = (kit.plain(15, 60) * (1 + seed)).double()
        steps = Direct(rows, lam=lam, iterations=25, pairs="paper")
        falls = np.diff(steps.objectives)
        assert falls.max() <= 1e-9
        for iterations in (2, 5):
            flag = Flag(lam=lam, pairs="paper", iterations=iterations)
            ours = Aggregator(flag)(rows).details["explained_variance"]
            direct = Direct(rows, lam=lam, pairs="paper", iterations=iterations).explained
            assert torch.allclose(ours, direct, atol=1e-6)

    def test_first_iteration_weighs_all_rows_alike(self) -> None:
        """Released code: from a random start in many dimensions all v are almost 0, and one step is PCA."""
        rows = kit.plain(15, 20_000).double()
        unit = torch.nn.functional.normalize(rows, dim=1)
        start = torch.linalg.qr(torch.rand(20_000, 8, dtype=torch.float64) - 0.5).Q
        weights = ((1 - (unit @ start).square().sum(1)).abs() + 1e-7) ** -0.25
        basis = torch.linalg.svd((weights[:, None] * unit).T, full_matrices=False).U[:, :8]
        released = basis @ (basis.T @ unit.sum(0)) / 8
        kit.assert_near(Aggregator(Flag(final="released"))(rows).vector, released, 1e-3)

    def test_released_divides_by_m_and_forgets_lengths(self) -> None:
        """Released code: update = (1/m) sum Y Y' x_i over rows of length 1; so no longer than n / m."""
        rows = kit.plain(15, 60).double()
        scaled, released = (Aggregator(Flag(final=f))(rows).vector for f in ("scaled", "released"))  # type: ignore[arg-type]
        typical = rows.norm(dim=1).quantile(0.5)
        assert torch.allclose(released, scaled / typical * 15 / 8)
        assert released.norm() <= 15 / 8

    def test_algorithm_1_taken_literally_is_not_robust(self) -> None:
        """Algorithm 1 ends with d = (1/n) Y Y' G 1 on raw rows: uniform [0, 1) rows own it."""
        direction = torch.nn.functional.normalize(torch.randn(20_000), dim=0)
        noise = torch.nn.functional.normalize(torch.randn(12, 20_000), dim=1)
        rows = torch.cat([direction + noise, torch.rand(3, 20_000)])
        honest = rows[:12].mean(0)
        paper, ours = (Aggregator(Flag(final=final))(rows).vector for final in ("paper", "scaled"))  # type: ignore[arg-type]
        assert cosine(paper, honest) < 0.15
        assert paper.norm() > 10 * honest.norm()
        assert cosine(ours, honest) > 0.9
        assert ours.norm() < 1.5 * honest.norm()
        assert not Flag(final="paper").robust
        assert Flag().robust

    def test_convergence_selects_half_of_the_rows(self) -> None:
        """Section 2: the likelihood is unbounded at v = 1, so that converged IRLS interpolates m rows. The
        reason why one iteration is our default.
        """
        rows = torch.randn(15, 5000).double() + 0.3 * torch.randn(5000)
        values = Aggregator(Flag(iterations=60))(rows).details["explained_variance"].sort().values
        assert (values > 0.999).sum() >= 7
        assert values[:6].max() < 0.5
        once = Aggregator(Flag())(rows).details["explained_variance"]
        assert once.max() < 0.95

    def test_paper_pairs_with_a_large_weight_lose_the_common_part(self) -> None:
        """Lambda = Theta(n): normalised differences have no common part, and Y turns away from it."""
        rows = torch.randn(15, 5000).double() + 0.3 * torch.randn(5000)
        without, with_pairs = (Aggregator(Flag(lam=lam, pairs="paper"))(rows).vector for lam in (0, 15))
        assert with_pairs.norm() < 0.2 * without.norm()

    @pytest.mark.parametrize("seed", range(20))
    def test_honest_direction_wins_when_the_subspace_sees_it(self, seed: int) -> None:
        """Unit columns: |Y' x| > f / (n - f) for the honest mean x implies <update, x> > 0."""
        generator = kit.rng(seed)
        n, f = 15, seed % 7
        rows = torch.randn(n, 30, generator=generator) + torch.randn(30, generator=generator)
        rows[n - f :] = -rows[: n - f].mean(0) + torch.randn(f, 30, generator=generator) * (seed % 3)
        rows = rows.double()
        mean = torch.nn.functional.normalize(rows, dim=1)[: n - f].mean(0)
        seen = (Direct(rows).basis.T @ mean).norm()
        if seen > f / (n - f):
            assert Aggregator(Flag())(rows).vector @ mean > 0
