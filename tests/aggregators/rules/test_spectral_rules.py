"""Rules that look at where rows scatter, and the one that trusts: by hand, and in d dimensions."""

import importlib
from itertools import combinations
from math import ceil

import numpy as np
import pytest
import torch
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import (
    CAF,
    MDA,
    SMEA,
    AggregationError,
    Aggregator,
    FLTrust,
    Gram,
    Rows,
    SpectralFilter,
)
from varangian.aggregators.rules import smea

LINE = [[0.0], [1.0], [2.0], [9.0]]

# specification, f, rows, the reference or None, the vector, the weights or None
TABLE = {
    # mean 3, so what lies at distances 3 2 1 6 keeps 3/4 8/9 35/36 0; in the next pass too little is left
    "caf": ("caf", 1, LINE, None, [51 / 47], [27 / 94, 32 / 94, 35 / 94, 0]),
    "caf, nothing goes": ("caf", 0, LINE, None, [3], [0.25] * 4),
    "caf, all alike": ("caf", 1, [[4.0, 2.0]] * 3, None, [4, 2], None),
    "smea": ("smea", 1, LINE, None, [1], [1 / 3, 1 / 3, 1 / 3, 0]),
    "smea, nothing goes": ("smea", 0, LINE, None, [3], [0.25] * 4),
    "spectral filter": ("spectral_filter", 1, LINE, None, [1], [1 / 3, 1 / 3, 1 / 3, 0]),
    # 9 and then 0 are the farthest from the mean 3
    "spectral filter of two": ({"spectral_filter": {"c": 2.0}}, 1, LINE, None, [1.5], [0, 0.5, 0.5, 0]),
    # without 9 the mean is 1, from which 0 and 2 are equally far: the higher row goes
    "spectral filter, twice": (
        {"spectral_filter": {"iterations": 2}}, 1, LINE, None, [0.5], [0.5, 0.5, 0, 0],
    ),
    "spectral filter, a part": ({"spectral_filter": {"c": 0.5}}, 2, [*LINE, [7]], None, [2.5], None),
    # cosines 3/5 0 -1 1, and all are as long as the reference
    "fltrust": (
        "fltrust", 3, [[3, 4], [0, 5], [-1, 0], [1, 0]], [2, 0], [1.7, 0.6], [0.15, 0, 0, 1.25],
    ),
    "fltrust, nobody agrees": ("fltrust", 1, [[-1, 0], [0, 3]], [2, 0], [0, 0], [0, 0]),
    "fltrust, a row of zeros": ("fltrust", 1, [[0, 0], [1, 1]], [3, 3], [3, 3], [0, 3]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value(case: str, dtype: torch.dtype) -> None:
    kit.assert_values(*TABLE[case], dtype)


def caf(rows: Tensor, f: int) -> Tensor:
    """As published, on d x d covariances; what has no weight is out."""
    weights, best, least = torch.ones(len(rows)).double(), rows.mean(0), torch.inf
    while weights.sum() > len(rows) - 2 * f:
        mean = weights @ rows / weights.sum()
        apart = rows - mean
        values, vectors = torch.linalg.eigh(apart.T @ (weights[:, None] * apart) / weights.sum())
        if values[-1] < least:
            best, least = mean, values[-1]
        outlying = (apart @ vectors[:, -1]).square()
        worst = outlying.masked_fill(weights == 0, 0).argmax()
        weights = (weights * (1 - outlying / outlying[worst])).clamp(min=0)
        weights[worst] = 0
    return best


def smallest_eigenvalue(rows: Tensor, f: int) -> Tensor:
    """All subsets, by singular values."""
    subsets = [rows[list(kept)] for kept in combinations(range(len(rows)), len(rows) - f)]
    return min(subsets, key=lambda s: float(torch.linalg.svdvals(s - s.mean(0))[0])).mean(0)


def filtered(rows: Tensor, f: int, c: float, passes: int) -> Tensor:
    """One iteration of DnC on all columns, `passes` times over."""
    for _ in range(passes):
        apart = rows - rows.mean(0)
        top = torch.linalg.svd(apart, full_matrices=False).Vh[0]
        rows = rows[(apart @ top).square().argsort()[: len(rows) - ceil(c * f)]]
    return rows.mean(0)


def trusted(rows: Tensor, root: Tensor) -> Tensor:
    directions = rows / rows.norm(dim=1, keepdim=True)
    trust = (directions @ (root / root.norm())).relu()
    scaled = directions * root.norm()
    return (trust @ scaled) / trust.sum()


def rows_with(attack: str, n: int, f: int, d: int = 30) -> Tensor:
    rows = kit.plain(n, d).double()
    if attack == "far":
        rows[:f] += 1e6 * torch.randn(d)
    elif attack == "near":
        rows[:f] = rows[f:].mean(0) - 1.5 * rows[f:].std(0)
    elif attack == "copies":
        rows[:f] = -3 * rows[f:].mean(0)
    return rows


ATTACKS = pytest.mark.parametrize("attack", ["none", "far", "near", "copies"])
SIZES = pytest.mark.parametrize(("n", "f"), [(3, 1), (8, 3), (11, 2), (12, 5)])


@ATTACKS
@SIZES
class TestInDimensions:
    def test_caf(self, attack: str, n: int, f: int) -> None:
        rows = rows_with(attack, n, f)
        kit.assert_near(Aggregator(CAF(f=f))(rows).vector, caf(rows, f), 1e-9, rows[f:])

    def test_smea(self, attack: str, n: int, f: int) -> None:
        rows = rows_with(attack, n, f)
        found = Aggregator(SMEA(f=f))(rows).vector
        kit.assert_near(found, smallest_eigenvalue(rows, f), 1e-9, rows[f:])

    @pytest.mark.parametrize(("c", "passes"), [(1.0, 1), (0.4, 2)])
    def test_spectral_filter(self, attack: str, n: int, f: int, c: float, passes: int) -> None:
        rows, passes = rows_with(attack, n, f), passes if n > 3 else 1
        rule = SpectralFilter(f=f, c=c, iterations=passes)
        kit.assert_near(Aggregator(rule)(rows).vector, filtered(rows, f, c, passes), 1e-9, rows[f:])

    def test_fltrust(self, attack: str, n: int, f: int) -> None:
        rows = rows_with(attack, n, f)
        root = rows[f:].mean(0) + torch.randn(30)
        kit.assert_near(Aggregator(FLTrust())(rows, root).vector, trusted(rows, root), 1e-9)


@pytest.mark.parametrize("rule", [CAF(f=3), SMEA(f=3), SpectralFilter(f=3)])
def test_a_large_common_part_takes_nothing_from_the_spread(rule: CAF | SMEA | SpectralFilter) -> None:
    apart = rows_with("near", 12, 3, 3000).float()
    far = (1e4 * torch.randn(3000) + apart).double()
    alone = Aggregator(rule)(far - far.mean(0)).weights
    found = Aggregator(rule)(far.float()).weights
    assert torch.allclose(found, alone, atol=1e-4)


@pytest.mark.parametrize("rule", [CAF(f=3), SMEA(f=3), SpectralFilter(f=3)])
@pytest.mark.parametrize("unit", [2.0**480, 2.0**-480])
def test_squares_may_be_as_large_as_they_can(rule: CAF | SMEA | SpectralFilter, unit: float) -> None:
    rows = rows_with("near", 12, 3)
    wanted, found = Aggregator(rule)(rows).weights, Aggregator(rule)(unit * rows).weights
    assert torch.allclose(found, wanted, rtol=1e-9)


class TestCAF:
    def test_silences_a_row_in_every_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where we leave byzfl: a row without weight sets no scale. There all would go by 1 - 1e-60."""
        rows = kit.plain(15, 30).double()
        rows[2], rows[9] = 1e30, -1e20
        shares = []
        leading = importlib.import_module("varangian.aggregators.numeric.spectrum").leading
        monkeypatch.setattr(
            "varangian.aggregators.rules.caf.leading", lambda k, s: (shares.append(s), leading(k, s))[1]
        )
        found = Aggregator(CAF(f=3))(rows).weights
        silent = [int((s == 0).sum()) for s in shares]
        assert silent == sorted(set(silent))
        assert len(silent) <= 2 * 3 + 1
        assert found[[2, 9]].eq(0).all()

    def test_follows_the_least_variance_and_not_the_last(self) -> None:
        """Removing an end of what has two sides makes the other the farther one."""
        rows = rows_with("near", 11, 2)
        kit.assert_near(Aggregator(CAF(f=2))(rows).vector, caf(rows, 2), 1e-9)
        last = Aggregator(SpectralFilter(f=1, iterations=4))(rows).vector
        assert (last - caf(rows, 2)).norm() > 1e-3

    @pytest.mark.parametrize(("n", "f"), [(5, 2), (9, 2), (9, 4)])
    def test_is_as_close_as_its_coefficient_says_to_every_honest_mean(self, n: int, f: int) -> None:
        """The spread is the top eigenvalue of the covariance, and attackers hide beside honest rows."""
        generator = torch.Generator().manual_seed(n + f)
        for distance in (0.5, 1, 2, 4, 30):
            honest = torch.randn(n - f, n, generator=generator).double() * torch.logspace(0, -1, n).double()
            hidden = honest.mean(0) + distance * torch.eye(n)[:1].double()
            rows = torch.cat([honest, hidden + 0.1 * torch.randn(f, n, generator=generator).double()])
            vector = Aggregator(CAF(f=f))(rows).vector
            bound = CAF(f=f).kappa(n, f)
            for some in combinations(range(n), n - f):
                chosen = rows[list(some)]
                off = chosen - chosen.mean(0)
                largest = torch.linalg.matrix_norm(off, 2) ** 2 / (n - f)
                assert (vector - chosen.mean(0)).square().sum() <= bound * largest

    @pytest.mark.parametrize("f", [1, 3])
    def test_takes_no_more_weight_than_it_may(self, f: int) -> None:
        """The weight left is that of the pass before 2 f are gone."""
        weights = Aggregator(CAF(f=f))(rows_with("far", 15, f)).weights
        assert (weights > 0).sum() >= 15 - 2 * f

    @pytest.mark.parametrize("n", [9, 12])
    def test_agrees_with_byzpy(self, n: int) -> None:
        """With enough power steps for its eigenvector; by default it takes 3, and errs by 1e-3."""
        theirs = pytest.importorskip("byzpy.aggregators.norm_wise.caf").CAF(f=3, power_iters=3000)
        rows = rows_with("near", n, 3, 300)
        kit.assert_near(Aggregator(CAF(f=3))(rows).vector, theirs.aggregate(list(rows)), 1e-9)


class TestSMEA:
    def test_is_not_the_tightest_subset(self) -> None:
        """Many directions of equal spread are better than one: a diameter cannot tell."""
        rows = torch.cat([2 * torch.eye(7), torch.zeros(3, 7)]).double()
        rows[7:, 0] = torch.tensor([-1.6, -1.5, -1.4])
        chosen, tight = (Aggregator(rule)(rows).weights for rule in (SMEA(f=3), MDA(f=3)))
        assert not torch.equal(chosen > 0, tight > 0)

    @pytest.mark.parametrize("seed", range(20))
    def test_prunes_nothing_that_is_better(self, seed: int) -> None:
        """Few columns and no outliers: the first guess is seldom the best, and many are almost as good."""
        rows = torch.randn(9, 2, generator=kit.rng(seed)).double()
        kit.assert_near(Aggregator(SMEA(f=3))(rows).vector, smallest_eigenvalue(rows, 3), 1e-9, rows)

    def test_a_far_row_hides_no_digits_of_the_others(self) -> None:
        """The scatter without it is a difference of sums, in which its place must not be."""
        rows = torch.randn(9, 2, generator=kit.rng()).double()
        wanted = smallest_eigenvalue(rows[:8], 2)
        rows[8] = torch.tensor([1e30, -1e30])
        kit.assert_near(Aggregator(SMEA(f=3))(rows).vector, wanted, 1e-9, rows[:8])

    def test_many_subsets_are_looked_at_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = kit.plain(12, 30).double()
        whole = Aggregator(SMEA(f=4))(rows).vector
        monkeypatch.setattr(smea, "AT_ONCE", 3)
        assert torch.equal(Aggregator(SMEA(f=4))(rows).vector, whole)

    def test_says_when_there_are_too_many_subsets(self) -> None:
        assert SMEA(f=5).requires(25, 5) is None
        reason = SMEA(f=6).requires(30, 6)
        assert reason == "it needs to search 593775 subsets of n - f rows, and its budget is 100000"
        assert SMEA(f=6, budget=600_000).requires(30, 6) is None
        with pytest.raises(AggregationError, match="593775 subsets"):
            Aggregator(SMEA(f=6))(torch.randn(30, 2))

    @pytest.mark.parametrize("n", [9, 12])
    def test_agrees_with_byzpy(self, n: int) -> None:
        theirs = pytest.importorskip("byzpy.aggregators.geometric_wise.smea").SMEA(f=3)
        rows = kit.plain(n, 300).double()
        found = theirs.aggregate(list(rows.clone()))
        kit.assert_near(Aggregator(SMEA(f=3))(rows).vector, found, 1e-9)


class TestSpectralFilter:
    @pytest.mark.parametrize("direction", ["of the far row", "across"])
    def test_a_huge_row_leaves_the_others_their_order(self, direction: str) -> None:
        """Squared distances from a mean that it has carried off would all be one number."""
        rows = kit.plain(10, 8).double()
        axis = torch.eye(8)[0] if direction == "across" else torch.ones(8)
        weights = []
        for length in (1e6, 1e12, 1e30):
            rows[4] = length * axis
            weights.append(Aggregator(SpectralFilter(f=3))(rows).weights)
        assert all(torch.equal(w, weights[0]) for w in weights)  # type: ignore[arg-type]
        assert weights[0][4] == 0

    def test_rounding_does_not_remove_one_more(self) -> None:
        """1.1 * 50 is 55.00000000000001."""
        assert 1.1 * 50 > 55
        assert SpectralFilter(f=50, c=1.1).requires(106, 50) is None

    def test_promises_nothing_unless_f_rows_go(self) -> None:
        assert SpectralFilter(f=4).robust
        assert SpectralFilter(f=4, c=0.5, iterations=2).robust
        assert not SpectralFilter(f=4, c=0.5).robust
        far = rows_with("none", 11, 4)
        far[:4] = 1e9 * torch.randn(30)
        assert Aggregator(SpectralFilter(f=4, c=0.5))(far).vector.norm() > 1e6
        assert Aggregator(SpectralFilter(f=4, c=0.5, iterations=2))(far).vector.norm() < 100

    def test_needs_an_honest_row_to_be_left(self) -> None:
        assert SpectralFilter(f=2, iterations=3).requires(9, 2) is None
        reason = SpectralFilter(f=2, iterations=3).requires(8, 2)
        assert reason == "it needs n >= 9 to remove 6 rows for f = 2, and n is 8"


class TestFLTrust:
    def test_any_number_of_rows_may_be_byzantine(self) -> None:
        root = torch.randn(30).double()
        rows = torch.cat([root[None] + 0.1 * torch.randn(1, 30), -1e9 * torch.rand(8, 1) * root])
        found = Aggregator(FLTrust(), f=8)(rows, root).vector
        assert torch.nn.functional.cosine_similarity(found, root, dim=0) > 0.9
        assert found.norm() <= root.norm() * (1 + 1e-12)

    @pytest.mark.parametrize("reference", [None, torch.zeros(5)])
    def test_without_a_reference_it_says_so(self, reference: Tensor | None) -> None:
        with pytest.raises(AggregationError, match="FLTrust needs a reference"):
            Aggregator(FLTrust())(torch.randn(4, 5), reference)

    def test_the_last_aggregate_is_no_substitute(self) -> None:
        """Every update is shorter than the last: the gradients stay, and the steps fade."""
        rows = kit.plain(9, 30)
        reference, lengths = rows.mean(0), list[float]()
        for _ in range(8):
            reference = Aggregator(FLTrust())(rows, reference).vector
            lengths.append(float(reference.norm()))
        assert all(np.diff(lengths) < 0)
        assert lengths[-1] < lengths[0] / 4

    def test_tells_its_trust(self) -> None:
        rows = torch.tensor([[3.0, 4.0], [0.0, 5.0], [-1.0, 0.0], [torch.nan, 0.0], [1.0, 0.0]])
        trust = Aggregator(FLTrust(), f=1)(rows, torch.tensor([2.0, 0.0])).details["trust"]
        assert trust.tolist() == pytest.approx([0.6, 0, 0, torch.nan, 1], nan_ok=True)

    def test_is_not_moved_by_lengths(self) -> None:
        rows, root = kit.plain(9, 30).double(), torch.randn(30).double()
        lengths = torch.logspace(-1, 30, 9).double()[:, None]
        found = [FLTrust()(Gram.of(Rows.of(x), root)) @ x for x in (rows, lengths * rows)]
        kit.assert_near(found[1], found[0], 1e-12)

    @pytest.mark.parametrize("length", [1e-2, 1e-3, 1e-6, 1e-12, 1e-20])
    def test_rows_count_however_short_they_are(self, length: float) -> None:
        """Else one colluder who is longer than the honest rows would have all the trust."""
        root = torch.randn(3000)
        rows = length * (root + torch.randn(9, 3000))
        rows[8] = 5 * (root + 3 * torch.randn(3000))
        found = Aggregator(FLTrust(), f=1)(rows, root)
        kit.assert_near(found.vector, trusted(rows.double(), root.double()), 1e-6)
        assert (found.details["trust"] > 0.2).all()
        assert found.vector.norm() <= root.norm() * (1 + 1e-6)

    def test_a_row_that_no_factor_lengthens_counts_as_zero(self) -> None:
        rows, root = kit.plain(9, 30), 1e6 * torch.ones(30)
        rows[4] = 1e-37
        short = Aggregator(FLTrust())(rows, root)
        assert short.vector.isfinite().all()
        assert short.details["trust"][4] == 0
