"""Rules that choose rows, and their conventions: by hand, against textbook code in d dimensions."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import (
    ARC,
    CGE,
    MDA,
    NNM,
    AggregationError,
    Aggregator,
    Bulyan,
    GeometricMedian,
    Gram,
    Krum,
    Mean,
    Median,
    MoNNA,
    Rows,
    aggregator_from,
)
from varangian.aggregators.kernels import reference as reference_kernels
from varangian.aggregators.numeric.order import Window

LINE = [[0.0], [1.0], [2.5], [10.0], [11.0]]
SEVEN = [[0.0], [4.0], [5.0], [6.0], [8.0], [20.0], [30.0]]

# specification, f, rows, the reference or None, the vector, the weights or None
TABLE = {
    # nothing is Byzantine: all are selected, and the mean of all values is left
    "bulyan, f = 0": ("bulyan", 0, [[1], [2], [6]], None, [3], None),
    # Krum takes 5, 4, 6; of 0 and 8 the one that is closer to 20; of 20 and 30 the one that is closer to 0.
    # Of 4 5 6 8 20, the smaller of 4 and 8 is in
    "bulyan": ("bulyan", 1, SEVEN, None, [5], None),
    "bulyan, trimmed": ({"bulyan": {"second": "trimmed"}}, 1, SEVEN, None, [19 / 3], None),
    # diameters 2.5 of the first three, 11 of all
    "mda": ("mda", 2, LINE, None, [7 / 6], [1 / 3, 1 / 3, 1 / 3, 0, 0]),
    "mda, nothing goes": ("mda", 0, LINE, None, [4.9], [0.2] * 5),
    # 10 without either end; the lower end is closer to the others
    "mda, a tie": ("mda", 1, [[0], [1], [2], [10], [12]], None, [3.25], [0.25] * 4 + [0]),
    "cge": ("cge", 1, [[3, 4], [0, 2], [6, 8], [-1, 0]], None, [2 / 3, 2], [1 / 3, 1 / 3, 0, 1 / 3]),
    "cge, equally long": ("cge", 1, [[2], [-2], [2]], None, [0], [0.5, 0.5, 0]),
    "monna about zero": ("monna", 2, LINE, None, [7 / 6], [1 / 3, 1 / 3, 1 / 3, 0, 0]),
    "monna about 9": ("monna", 2, LINE, [9], [23.5 / 3], [0, 0, 1 / 3, 1 / 3, 1 / 3]),
    "monna about a row": ({"monna": {"pivot": 3}}, 2, LINE, None, [23.5 / 3], [0, 0, 1 / 3, 1 / 3, 1 / 3]),
    # k = floor(2 * 3 / 4) = 1, and the longest is cut to 5
    "arc": ({"mix": ["arc"], "rule": "mean"}, 1, [[3, 4], [0, 30], [1, 0], [0, 0]], None, [1, 2.25], None),
    # k = floor(2 * 4 / 5) = 1
    "arc, equally long": (
        {"mix": ["arc"], "rule": "mean"}, 1, [[2], [-2], [1], [2], [0]], None, [0.6], None,
    ),
    # from the mean 4 the pulls are 1/4 1/3 1/7, in all 61/84
    "rfa, one step": ({"rfa": {"iterations": 1}}, 1, [[0], [1], [11]], None, [160 / 61], None),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value(case: str, dtype: torch.dtype) -> None:
    kit.assert_values(*TABLE[case], dtype, slack=1e-8)


def believed(aggregator: Aggregator, rows: Tensor, reference: Tensor | None = None) -> list[int]:
    """The rows with a weight, which must all have the same."""
    weights = aggregator(rows, reference).weights
    chosen = weights.nonzero().flatten().tolist()
    assert torch.allclose(weights[chosen], torch.ones(len(chosen)).double() / len(chosen))
    return chosen


def distances_of(rows: Tensor) -> np.ndarray:
    points = rows.cpu().double().numpy()
    return np.linalg.norm(points[:, None] - points, axis=2)


def krum_by_the_book(rows: Tensor, f: int) -> list[int]:
    """El Mhamdi et al.: choose with Krum, remove, repeat until there are n - 2 f."""
    squares = distances_of(rows) ** 2
    left, chosen = list(range(len(rows))), []

    def sums(i: int) -> tuple[float, ...]:
        near = np.sort([squares[i, j] for j in left if j != i])
        return tuple(np.cumsum(near)[max(0, len(left) - f - 3) :])

    while len(chosen) < len(rows) - 2 * f:
        chosen.append(min(left, key=sums))
        left.remove(chosen[-1])
    return chosen


class TestBulyan:
    """El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018."""

    @pytest.mark.parametrize(("n", "f"), [(7, 1), (11, 2), (15, 2), (15, 3), (23, 5), (50, 10)])
    @pytest.mark.parametrize("family", ["plain", "lopsided", "low_rank"])
    def test_by_the_book(self, n: int, f: int, family: str) -> None:
        rows = kit.rows_of(family, n)
        selection = Bulyan(f=f).select(Gram.of(Rows.of(rows)))
        chosen = krum_by_the_book(rows, f)
        assert selection.argmax(dim=1).tolist() == chosen
        assert torch.equal(selection.sum(dim=1), torch.ones(n - 2 * f).double())
        values, beta = rows[chosen].cpu().numpy(), n - 4 * f
        nearest = np.abs(values - np.median(values, axis=0)).argsort(axis=0)[:beta]
        wanted = np.take_along_axis(values, nearest, axis=0).mean(axis=0)
        kit.assert_near(Aggregator(Bulyan(f=f))(rows).vector.cpu(), torch.from_numpy(wanted), 1e-12)
        trimmed = np.sort(values, axis=0)[f : n - 3 * f].mean(axis=0)
        found = Aggregator(Bulyan(f=f, second="trimmed"))(rows).vector.cpu()
        kit.assert_near(found, torch.from_numpy(trimmed), 1e-12)

    def test_scores_are_of_the_rows_that_are_left(self) -> None:
        """Garfield and the Flag Aggregator's code mean to, and never do: the first scores stay."""
        differ = 0
        for seed in range(20):
            rows = torch.randn(11, 5, generator=kit.rng(seed)).double()
            squares = np.sort(distances_of(rows) ** 2, axis=1)
            once = squares[:, 1:8].sum(axis=1).argsort()[:7].tolist()
            ours = Bulyan(f=2).select(Gram.of(Rows.of(rows))).argmax(dim=1).tolist()
            assert ours == krum_by_the_book(rows, 2)
            differ += sorted(ours) != sorted(once)
        assert differ > 5

    @pytest.mark.parametrize("seed", range(5))
    def test_no_coordinate_is_farther_from_the_median_than_an_honest_one(self, seed: int) -> None:
        """Proposition 2 rests on it: of theta selected, theta - f >= beta are honest."""
        generator = kit.rng(seed)
        rows = torch.randn(15, 300, generator=generator).double()
        rows[12:] = rows[:12].mean(dim=0) + 10.0 ** (seed - 2) * torch.randn(3, 300, generator=generator)
        chosen = krum_by_the_book(rows, 3)
        middle = rows[chosen].median(dim=0).values
        honest = (rows[[i for i in chosen if i < 12]] - middle).abs().amax(dim=0)
        assert ((Aggregator(Bulyan(f=3))(rows).vector - middle).abs() <= honest + 1e-12).all()

    def test_one_neighbour_ties_and_the_next_decides(self) -> None:
        """With f = 1 the last of three rows is chosen by one neighbour, which 0 and 2 are to each other."""
        rows = torch.tensor([[50.0, 0], [0, 0], [0, 1], [0, 2], [0, 3], [49, 0], [90, 0]]).double()
        first = krum_by_the_book(rows, 1)
        turned = krum_by_the_book(rows.flip(0), 1)
        assert sorted(first) == sorted(6 - i for i in turned)
        for order in (range(7), range(6, -1, -1)):
            ours = Bulyan(f=1).select(Gram.of(Rows.of(rows[list(order)])))
            assert sorted(order[i] for i in ours.argmax(dim=1).tolist()) == sorted(first)

    def test_after_a_mixing(self) -> None:
        rows = kit.plain(11, 5000).double()
        mixed = NNM(f=2).mix(Gram.of(Rows.of(rows)), kit.rng()) @ rows
        wanted = Window(2, 5)(mixed[krum_by_the_book(mixed, 2)])
        rule = Aggregator(Bulyan(f=2, second="trimmed"), (NNM(f=2),))
        kit.assert_near(rule(rows).vector, wanted, 1e-12)

    @pytest.mark.parametrize("part", [Bulyan(f=1), MDA(f=3)])
    @pytest.mark.parametrize("seed", range(5))
    def test_rounding_on_one_side_of_the_diagonal(self, part: Bulyan | MDA, seed: int) -> None:
        """Matrix products need not be symmetric to the last bit, and ties hang on it."""
        rows = torch.randn(7, 5, generator=kit.rng(seed)).double()
        products = torch.cat([rows, torch.zeros(1, 5)]) @ torch.cat([rows, torch.zeros(1, 5)]).T
        noise = 1 + 1e-15 * torch.randn(8, 8, generator=kit.rng(seed)).double().fill_diagonal_(0)
        grams = [Gram.about(lambda: products, 7)]
        grams += [Gram.about(lambda noise=n: products * noise, 7) for n in (noise, noise.T)]
        chosen = [part.select(gram) if isinstance(part, Bulyan) else part(gram) for gram in grams]
        assert torch.equal(chosen[0], chosen[1])
        assert torch.equal(chosen[0], chosen[2])

    def test_needs_4f_plus_3(self) -> None:
        assert Bulyan(f=3).requires(15, 3) is None
        assert Bulyan(f=3).requires(14, 3) == "it needs n >= 4 f + 3, 15 for f = 3, and n is 14"


class TestMDA:
    """El Mhamdi et al., "Genuinely Distributed Byzantine Machine Learning", PODC 2020."""

    @pytest.mark.parametrize(("n", "f"), [(1, 0), (5, 1), (7, 2), (9, 2), (9, 4), (10, 3)])
    @pytest.mark.parametrize("d", [1, 2, 30])
    @pytest.mark.parametrize("kind", ["noise", "grid", "copies", "colluders"])
    def test_all_subsets(self, n: int, f: int, d: int, kind: str) -> None:
        rows = torch.randn(n, d).double()
        if kind == "grid":
            rows = (2 * rows).round()
        elif kind == "copies":
            rows[n // 2 :] = rows[: n - n // 2].clone()
        elif kind == "colluders":
            rows[n - f :] = rows[0] + 0.01 * rows[n - f :]
        distances = distances_of(rows)
        scores = np.sort(distances**2, axis=1)[:, : n - f].sum(axis=1)

        def badness(kept: tuple[int, ...]) -> tuple[object, ...]:
            """Diameter, and then whether it could do without the remotest row, the next, and so on."""
            remotest = sorted(range(n), key=lambda i: (scores[i].round(9), i), reverse=True)
            return distances[np.ix_(kept, kept)].max().round(9), [i in kept for i in remotest]

        wanted = min(combinations(range(n), n - f), key=badness)
        assert believed(Aggregator(MDA(f=f)), rows) == list(wanted)

    @pytest.mark.parametrize("kind", ["noise", "far", "inside"])
    @pytest.mark.parametrize("f", [10, 24])
    def test_no_subset_of_fifty_is_tighter(self, kind: str, f: int) -> None:
        """By an integer programme: a diameter that is less would cost more than f rows."""
        rows = torch.randn(50, 20).double()
        if kind != "noise":
            rows[:f] = {"far": 100.0, "inside": rows[f]}[kind] + 0.1 * torch.randn(f, 20)
        kept = believed(Aggregator(MDA(f=f)), rows)
        assert len(kept) == 50 - f
        distances = distances_of(rows)
        diameter = distances[np.ix_(kept, kept)].max()
        pairs = np.argwhere(np.triu(distances >= diameter * (1 - 1e-12)))
        covers = np.zeros((len(pairs), 50))
        for row, pair in zip(covers, pairs, strict=True):
            row[pair] = 1
        fewest = milp(
            np.ones(50), constraints=LinearConstraint(covers, 1), integrality=1, bounds=Bounds(0, 1)
        )
        assert fewest.success
        assert fewest.fun > f + 0.5

    def test_a_tie_does_not_depend_on_the_order(self) -> None:
        """Either of two rows may go that are too far apart, as long as two others are almost as far."""
        rows = torch.tensor([[0.0, 0], [10, 0], [5, 5.1], [5, -5.3]]).double()
        order = torch.randperm(4)
        kept = believed(Aggregator(MDA(f=1)), rows)
        assert kept == [0, 1, 2]
        assert sorted(order[believed(Aggregator(MDA(f=1)), rows[order])].tolist()) == kept

    @pytest.mark.parametrize("longer", [-1e-12, 0.0, 1e-12])
    def test_rounding_breaks_no_tie(self, longer: float) -> None:
        """Two pairs are 3 apart: whichever is longer by a bit, the last row is the remotest and goes."""
        rows = torch.tensor([[-1 - longer, 0], [2, 0], [0.2, 1], [0.2, -2]], dtype=torch.float64)
        assert believed(Aggregator(MDA(f=1)), rows) == [0, 1, 2]


class TestCGE:
    """Gupta et al., "... Norm-Based Comparative Gradient Elimination", DSN-W 2021."""

    @pytest.mark.parametrize("family", kit.FAMILIES)
    def test_drops_the_f_longest(self, family: str) -> None:
        rows = kit.rows_of(family)
        shortest = np.linalg.norm(rows.cpu().numpy(), axis=1).argsort()[:12]
        assert believed(Aggregator(CGE(f=3)), rows) == sorted(shortest)

    def test_no_longer_than_the_longest_honest_row(self) -> None:
        rows = kit.plain(15, 40)
        rows[12:] = -1.1 * rows[:3]
        assert Aggregator(CGE(f=3))(rows).vector.norm() <= rows[:12].norm(dim=1).max()


class TestMoNNA:
    """Farhadkhani et al., "Robust Collaborative Learning with Linear Gradient Overhead", ICML 2023."""

    @pytest.mark.parametrize("family", ["plain", "lopsided", "sparse"])
    def test_nearest_to_the_trusted_vector(self, family: str) -> None:
        rows = kit.rows_of(family)
        trusted = rows[4] + rows[7]
        nearest = (rows - trusted).norm(dim=1).argsort()[:12].tolist()
        assert believed(Aggregator(MoNNA(f=3)), rows, trusted) == sorted(nearest)
        about_row = (rows - rows[4]).norm(dim=1).argsort()[:12].tolist()
        assert believed(Aggregator(MoNNA(f=3, pivot=4)), rows, trusted) == sorted(about_row)

    def test_pivot_is_the_same_row_when_others_are_dropped(self) -> None:
        rows = torch.tensor([[0.0], [torch.nan], [9.0], [10.0], [2.0]])
        assert believed(Aggregator(MoNNA(f=2, pivot=3)), rows) == [2, 3, 4]
        assert believed(Aggregator(MoNNA(f=2, pivot=0)), rows) == [0, 2, 4]

    def test_pivot_that_is_not_there(self) -> None:
        rows = torch.tensor([[0.0], [torch.nan], [9.0], [10.0], [2.0]])
        with pytest.raises(AggregationError, match="it needs row 1, which is not a valid one"):
            Aggregator(MoNNA(f=2, pivot=1))(rows)
        assert "it needs row 5, counted from 0, and n is 5" in str(
            Aggregator(MoNNA(f=2, pivot=5)).requires(5)
        )
        with pytest.raises(ValueError, match="`pivot` should be a row"):
            MoNNA(f=2, pivot=-1)


class TestARC:
    """Allouah et al., "Adaptive Gradient Clipping for Robust Federated Learning", ICLR 2025."""

    @pytest.mark.parametrize(
        ("n", "f", "k"), [(5, 0, 0), (3, 1, 1), (9, 3, 4), (15, 3, 4), (15, 7, 7), (50, 10, 16)]
    )
    def test_clips_the_k_longest_to_the_next(self, n: int, f: int, k: int) -> None:
        """Algorithm 2: k = floor(2 (f / n) (n - f)), and the radius is the norm of rank k + 1."""
        rows = kit.lopsided(n, 30).double()[torch.randperm(n)]
        lengths = rows.norm(dim=1, keepdim=True)
        radius = lengths.flatten().sort(descending=True).values[k]
        wanted = rows * (radius / lengths).clamp(max=1)
        mixing = ARC(f=f).mix(Gram.of(Rows.of(rows)), kit.rng())
        assert torch.allclose(mixing @ rows, wanted)
        assert (mixing.diagonal() < 1).sum() == k
        found = Aggregator(Mean(), (ARC(f=f),))(rows).vector
        assert torch.allclose(found, wanted.mean(dim=0))

    def test_no_row_stays_longer_than_the_longest_honest_one(self) -> None:
        """Lemma 5.1: k >= f, so the radius is at most the length of an honest row."""
        for n, f in [(3, 1), (15, 3), (15, 7), (16, 5)]:
            rows = kit.plain(n, 30).double()
            rows[:f] *= 1e12
            mixed = ARC(f=f).mix(Gram.of(Rows.of(rows)), kit.rng()) @ rows
            assert mixed.norm(dim=1).max() <= rows[f:].norm(dim=1).max() * (1 + 1e-9)

    def test_honest_workers_who_agree_are_left_alone(self) -> None:
        """What a fixed radius does not do (`test_paper`), and why that is not robust and this is."""
        rows = torch.full((7, 4), 10.0)
        rows[:2] = torch.tensor([[0.0], [-1e9]])
        assert torch.allclose(Aggregator(Median(), (ARC(f=2),))(rows).vector, rows[6])


def scores(rows: Tensor, neighbours: int, power: int) -> np.ndarray:
    return (np.sort(distances_of(rows), axis=1)[:, 1 : neighbours + 1] ** power).sum(axis=1)


class TestConventions:
    @pytest.mark.parametrize(
        ("convention", "fewer", "power", "rest"),
        [("paper", 2, 2, 2), ("byzfl", 1, 2, 0), ("garfield", 1, 1, 2), ("torchjd", 2, 1, 2)],
    )
    @pytest.mark.parametrize(("n", "f"), [(7, 2), (15, 3), (16, 5)])
    @pytest.mark.parametrize("family", ["plain", "lopsided", "low_rank"])
    def test_krum(
        self, convention: str, fewer: int, power: int, rest: int, n: int, f: int, family: str
    ) -> None:
        rows = kit.rows_of(family, n)
        best = scores(rows, n - f - fewer, power).argsort(kind="stable")
        one = {"krum": {"convention": convention}}
        many = {"multi_krum": {"convention": convention}}
        assert believed(aggregator_from(one, "", f=f), rows) == [best[0]]
        assert believed(aggregator_from(many, "", f=f), rows) == sorted(best[: n - f - rest])

    def test_krum_differs(self) -> None:
        """Three neighbours or four, squared or not: each another row."""
        rows = torch.tensor([[0.0], [4], [12], [13], [14], [19]])
        assert believed(Aggregator(Krum(f=1)), rows) == [4]
        assert believed(Aggregator(Krum(f=1, convention="byzfl")), rows) == [2]
        apart = torch.tensor([[7, 4], [7, 6], [7, 5], [0, 0], [0, 4], [1, 6], [2, 4]]).double()
        assert believed(Aggregator(Krum(f=2)), apart) == [4]
        assert believed(Aggregator(Krum(f=2, convention="torchjd")), apart) == [2]

    def test_krum_may_select_more_where_multi_krum_does(self) -> None:
        assert Krum(f=2, select=8, convention="byzfl").requires(10, 2) is None
        assert Krum(f=2, select=9, convention="byzfl").requires(10, 2) == (
            "it can select at most n - f = 8 rows, not 9"
        )
        assert Krum(f=2, select=7).requires(10, 2) == "it can select at most n - f - 2 = 6 rows, not 7"

    @pytest.mark.parametrize("family", ["plain", "lopsided", "low_rank"])
    @pytest.mark.parametrize("tolerance", [1e-30, 1e-6, 0.05])
    def test_rfa(self, family: str, tolerance: float) -> None:
        """Pillutla et al.'s code: from the mean, distances of at least 1e-5, at most four steps, and none
        after one that lowers the cost by less than the tolerance.
        """
        rows = kit.rows_of(family).cpu()
        z = rows.mean(dim=0)
        for _ in range(4):
            distance = (rows - z).norm(dim=1)
            pull = 1 / distance.clamp(min=1e-5)
            z = pull @ rows / pull.sum()
            cost = (rows - z).norm(dim=1).sum()
            if (distance.sum() - cost).abs() < tolerance * cost:
                break
        found = aggregator_from({"rfa": {"tolerance": tolerance}}, "", f=3)(rows.to(kit.DEVICE)).vector
        kit.assert_near(found.cpu(), z, 1e-10)

    def test_rfa_is_a_preset(self) -> None:
        released = GeometricMedian(convention="rfa", smoothing=1e-5, tolerance=1e-6, iterations=4)
        assert aggregator_from("rfa", "", f=3).rule == released

    def test_rfa_counts_short_distances_as_longer(self) -> None:
        rows = torch.tensor([[0.0], [1e-6], [5e-6]]).double()
        found = aggregator_from("rfa", "", f=1)(rows).vector
        assert found.item() == pytest.approx(2e-6)
        assert Aggregator(GeometricMedian())(rows).vector.item() == pytest.approx(1e-6)

    def test_four_steps_do_not_come_back_from_far(self) -> None:
        """Why it is not robust: what is left of a row at D is D / (n - 1)^4, about."""
        rows = kit.plain(15, 40).double()
        rows[0] = 1e12
        rfa, exact = (aggregator_from(name, "", f=3) for name in ("rfa", "geometric_median"))
        assert 1e5 < rfa(rows).vector.norm() / exact(rows).vector.norm() < 1e8
        assert not rfa.robust
        assert exact.robust


@dataclass(frozen=True)
class Chosen:
    """Adds up the columns of `matrix @ points`."""

    matrix: tuple[tuple[float, ...], ...]

    def requires(self, n: int, f: int) -> None: ...

    def select(self, gram: Gram) -> Tensor:
        return torch.tensor(self.matrix, dtype=torch.float64)

    def columnwise(self, block: Tensor) -> Tensor:
        return block.sum(dim=0)


@pytest.mark.parametrize(
    ("matrix", "total", "read"),
    [
        (((0, 0, 1), (1, 0, 0)), 5, True),
        (((0, 0, 1), (0, 0, 1), (0, 0, 1)), 12, True),  # as many as there are, and others
        (((0, 0, 1), (0.5, 0, 0)), 4.5, False),
        (((0, 0, 1), (1, 1, 0)), 7, False),
        (((0, 0, 1, 0), (1, 0, 0, 1)), 15, False),  # with the reference
        (((0, 0, 0, 1),), 10, False),
    ],
)
def test_chosen_rows_are_read_as_they_are(
    matrix: tuple[tuple[float, ...], ...], total: float, read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is multiplied for rows that are only chosen."""
    multiplied = []

    def spy(*args: Any) -> Tensor:
        multiplied.append(args)
        return mixed(*args)

    mixed = reference_kernels.mixed
    monkeypatch.setattr(reference_kernels, "mixed", spy)
    rows, about = torch.tensor([[1.0], [2.0], [4.0]]).double(), torch.tensor([10.0]).double()
    found = Aggregator(Chosen(matrix), backend="reference")(rows, about)
    assert found.vector.tolist() == [total]
    assert (not multiplied) == read
