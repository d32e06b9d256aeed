"""The geometry: what the Gram says is what the vectors say, at any offset and scale."""

import numpy as np
import pytest
import torch
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import (
    ARC,
    CAF,
    CGE,
    MDA,
    NNM,
    SMEA,
    Aggregator,
    Bucketing,
    CenteredClipping,
    Clipping,
    GeometricMedian,
    Gram,
    Krum,
    Mean,
    Rows,
    SpectralFilter,
    Weighting,
)
from varangian.aggregators.gram import inverses, typical
from varangian.aggregators.kernels import Backend, blocked, native, reference


def distances(points: Tensor) -> Tensor:
    """Squared, from the differences themselves."""
    return torch.stack([(points - p).square().sum(dim=1) for p in points.double()])


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Of distances that are more than what rounding leaves between points that coincide."""
    apart = wanted > 1e-25 * wanted.max()
    return float(((found - wanted).abs()[apart] / wanted[apart]).max())


class TestGeometry:
    @pytest.fixture
    def rows(self) -> Tensor:
        return kit.plain(6, 30).double()

    @pytest.fixture(params=["zero", "a reference"])
    def last(self, request: pytest.FixtureRequest) -> Tensor | None:
        return None if request.param == "zero" else torch.randn(30).double()

    def test_products(self, rows: Tensor, last: Tensor | None) -> None:
        gram = Gram.of(Rows.of(rows), last)
        centre = torch.zeros(30) if last is None else last
        assert torch.allclose(gram.inner, rows @ rows.T)
        assert torch.allclose(gram.norms, rows.norm(dim=1))
        assert torch.allclose(gram.centered, (rows - centre) @ (rows - centre).T)
        assert torch.allclose(gram.sqdist, distances(rows))
        assert gram.sqdist.diagonal().eq(0).all()

    def test_mixed_points(self, rows: Tensor, last: Tensor | None) -> None:
        mixing = torch.randn(4, 7).double()
        with_last = torch.cat([rows, torch.zeros(1, 30) if last is None else last[None]])
        points = mixing @ with_last
        gram = Gram.of(Rows.of(rows), last).mixed(mixing)
        assert len(gram) == 4
        assert torch.allclose(gram.inner, points @ points.T)
        assert torch.allclose(gram.sqdist, distances(points))
        weights = torch.randn(4).double()
        assert torch.allclose(gram.sqdist_to(weights), (points - weights @ points).square().sum(dim=1))

    @pytest.mark.parametrize("mixing", [NNM(f=2), ARC(f=2), Clipping(radius=300.0), Bucketing()])
    def test_symmetric_to_the_last_bit(self, mixing: NNM | ARC | Clipping | Bucketing) -> None:
        """Also of mixed rows whose common part is far longer than what is between them."""
        rows = Rows.of(torch.randn(15, 23).double() + 100 * torch.randn(23).double())
        gram = Gram.of(rows)
        gram = gram.mixed(mixing.mix(gram, kit.rng()))
        for matrix in (gram.sqdist, gram.inner, gram.centered):
            assert torch.equal(matrix, matrix.T)
        assert (gram.sqdist >= 0).all()
        assert gram.sqdist.diagonal().eq(0).all()

    def test_about_any_centre(self, rows: Tensor, last: Tensor | None) -> None:
        """Products from a centre near the rows mean the same as those from the reference."""
        zero = torch.zeros(1, 30).double()
        points = torch.cat([rows, zero if last is None else last[None], zero]) - rows[2]
        near, plain = Gram.about(lambda: points @ points.T, 6), Gram.of(Rows.of(rows), last)
        mixing = torch.randn(4, 7).double()
        for found, wanted in ((near, plain), (near.mixed(mixing), plain.mixed(mixing))):
            assert torch.allclose(found.inner, wanted.inner)
            assert torch.allclose(found.centered, wanted.centered)
            assert torch.allclose(found.sqdist, wanted.sqdist)
            assert torch.allclose(found.towards, wanted.towards)
            assert found.reference_norm == pytest.approx(wanted.reference_norm)
            place = wanted.combination(torch.randn(len(wanted)).double())
            assert found.spread(place) == pytest.approx(wanted.spread(place))

    def test_centre_near_the_rows_keeps_their_distances(self) -> None:
        """Rows of 0 and .1 beside a common part of a million are apart, and equal ones are not."""
        rows = torch.tensor([[0.0], [0.1], [0.1]]).double() + 1e6
        points = torch.cat([rows, torch.zeros(2, 1).double()]) - rows[1]
        found = Gram.about(lambda: points @ points.T, 3)
        assert torch.allclose(found.sqdist, distances(rows), rtol=1e-12)
        assert GeometricMedian()(found).tolist() == [0, 0.5, 0.5]

    def test_mixing_twice_is_mixing_by_the_product(self, rows: Tensor) -> None:
        first, second = torch.randn(5, 6).double(), torch.randn(3, 5).double()
        gram = Gram.of(Rows.of(rows))
        assert torch.allclose(gram.mixed(first).mixed(second).inner, gram.mixed(second @ first).inner)

    def test_points_that_coincide_but_for_rounding_are_at_distance_zero(self) -> None:
        """x_3 is a combination of x_1 and x_2, and so has two coordinates."""
        for _ in range(20):
            a, b = torch.randn(2).double()
            rows = torch.randn(3, 1000).double()
            rows[2] = a * rows[0] + b * rows[1]
            gram = Gram.of(Rows.of(rows)).mixed(torch.tensor([[a, b, 0], [0, 0, 1]]).double())
            assert gram.sqdist.eq(0).all()

    def test_typical_length_is_the_midpoint(self) -> None:
        assert typical(np.array([4.0, 1.0, 9.0, 2.0])) == 3
        assert inverses(np.array([0.0, 4.0])).tolist() == [0, 0.25]


class TestOffsets:
    """Rows that share a part much longer than what is between them: parameters, momenta, late gradients."""

    @pytest.mark.parametrize("ratio", [1e3, 1e4, 1e5])
    @pytest.mark.parametrize("n", [8, 15, 30])
    @pytest.mark.parametrize("d", [1000, 20_000])
    @pytest.mark.parametrize("known", [False, True])
    def test_distances_survive(self, ratio: float, n: int, d: int, known: bool) -> None:
        common = torch.randn(d)
        rows = (common + 0.01 * torch.randn(n, d) * (1e2 / ratio)).to(kit.DEVICE)
        wanted = distances(rows.double()).cpu()
        last = rows.mean(dim=0) if known else None
        found = Gram.of(Rows.of(rows), last).sqdist
        assert (found >= 0).all()
        # About the origin float64 itself has 1e-16 of squares that are 1e10 times as large.
        assert relative_error(found, wanted) < (3e-5 if ratio == 1e5 and not known else 1e-5)

    @pytest.mark.parametrize("ratio", [0.0, 1.0, 3.0, 10.0, 30.0, 100.0])
    @pytest.mark.parametrize("d", [500, 5000, 100_000])
    def test_distances_survive_moderate_offsets(self, ratio: float, d: int) -> None:
        """About where float32 products begin not to do."""
        rows = (ratio * torch.randn(d) + torch.randn(8, d)).to(kit.DEVICE)
        wanted = distances(rows.double()).cpu()
        assert relative_error(Gram.of(Rows.of(rows)).sqdist, wanted) < 1e-5

    @pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-15, 1.0, 1e15, 1e30])
    def test_distances_survive_any_scale(self, scale: float) -> None:
        rows = scale * kit.plain(8, 2000).to(kit.DEVICE)
        wanted = distances(rows.double()).cpu()
        assert relative_error(Gram.of(Rows.of(rows)).sqdist, wanted) < 1e-5

    @pytest.mark.parametrize("backend", [None, "reference"])
    def test_a_common_part_of_a_million_leaves_rows_apart(self, backend: str | None) -> None:
        """Of 0, .1 and .1 beside it the majority is at .1; float64 about the origin would see one point."""
        rows = (torch.tensor([[0.0], [0.1], [0.1]]).double() + 1e6).to(kit.DEVICE)
        for rule in (GeometricMedian(), MDA(f=1)):
            found = Aggregator(rule, backend=backend)(rows).vector.item() - 1e6
            assert found == pytest.approx(0.1, abs=1e-6)

    @pytest.mark.parametrize(
        "rule",
        [GeometricMedian(), CAF(f=2), SMEA(f=2), SpectralFilter(f=2)],
        ids=lambda r: type(r).__name__,
    )
    def test_a_reference_far_away_takes_no_digits(self, rule: Weighting) -> None:
        """What no translation changes is measured where the rows are."""
        rows = torch.randn(11, 7).double()
        near, far = (Aggregator(rule)(rows, at).weights for at in (None, torch.full((7,), 1e7).double()))
        assert torch.allclose(near, far, rtol=1e-8, atol=1e-12)

    def test_clipped_rows_are_measured_where_they_went(self) -> None:
        """To a sphere that is a thousandth as far out as the rows were."""
        rows = 1e6 + torch.randn(9, 7).double()
        gram = Gram.of(Rows.of(rows))
        clipped = Clipping(radius=1000.0).mix(gram, kit.rng())
        wanted = distances(1000 * rows / rows.norm(dim=1, keepdim=True))
        assert relative_error(gram.mixed(clipped).sqdist, wanted) < 1e-6

    def test_centered_clipping_comes_near(self) -> None:
        """From zero to rows a million away; once there it still tells their distances apart."""
        rows, centre = 1e6 + torch.randn(9, 7).double(), torch.zeros(7).double()
        for _ in range(3):
            offsets = rows - centre
            lengths = offsets.norm(dim=1, keepdim=True)
            centre = centre + (offsets * (lengths.quantile(0.5) / lengths).clamp(max=1)).mean(dim=0)
        found = Aggregator(CenteredClipping(iterations=3))(rows).vector
        assert torch.allclose(found - 1e6, centre - 1e6, atol=1e-5)

    @pytest.mark.parametrize("backend", [None, "blocked"])
    def test_rows_far_shorter_than_the_reference_keep_their_lengths(self, backend: str | None) -> None:
        rows = torch.randn(9, 5000) * torch.logspace(-4, -3, 9)[:, None]
        chosen = Aggregator(CGE(f=4), backend=backend)(rows.to(kit.DEVICE), torch.randn(5000)).weights
        assert chosen.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
        gram = Gram.of(Rows.of(rows), torch.randn(5000))
        assert torch.allclose(gram.norms, rows.double().norm(dim=1), rtol=1e-5)

    def test_krum_picks_the_same_worker_in_both_precisions(self) -> None:
        common = torch.randn(1000)
        for _ in range(10):
            rows = common + 1e-5 * torch.randn(8, 1000)
            single, double = (Aggregator(Krum(f=1))(points).weights for points in (rows, rows.double()))
            assert single is not None
            assert double is not None
            assert torch.equal(single, double)


CENTRING = [b for b in (native, blocked, reference) if b is not native or native.library()]


@pytest.mark.parametrize("backend", CENTRING, ids=lambda b: b.NAME)
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("ratio", [10, 1e3, 1e6])
class TestCommonPart:
    """Rows are measured from where they are, also when others among them are somewhere else."""

    def rows(self, ratio: float, n: int = 15, d: int = 3 * 4096 + 77) -> Tensor:
        rows = ratio * torch.randn(d) + torch.randn(n, d)
        rows[0] = 0
        rows[1] *= 1e-3
        rows[2] *= 3
        rows[4] = rows[3] + 1e-2 * torch.randn(d)
        rows[6] = rows[5]
        rows[7] = -1e3 * rows[7]
        return rows

    def test_all_distances_and_lengths(self, backend: Backend, known: bool, ratio: float) -> None:
        rows = self.rows(ratio)
        last = torch.randn(rows.shape[1]) if known else None
        gram, wanted = Gram.of(Rows.of(rows), last, backend), distances(rows)
        assert relative_error(gram.sqdist, wanted) < 1e-5
        assert gram.sqdist[5, 6] == 0
        # From the origin a row far shorter than the reference, or than most rows, keeps the root of what
        # float32 keeps of the square of the one, or float64 of the square of the others.
        lengths, unsure = rows.double().norm(dim=1), 1e-4
        if last is not None:
            unsure = max(1e-3 * float(last.norm()), 1e-7 * float(lengths.median()))
        assert torch.allclose(gram.norms, lengths, rtol=1e-5, atol=unsure)

    def test_common_part_of_some_columns(self, backend: Backend, known: bool, ratio: float) -> None:
        """It begins in the middle of a slice, where other rows were the nearest."""
        d = 40_000
        rows = torch.randn(7, d)
        rows[:3] += ratio * torch.randn(d)
        rows[3:, 20_000:] = rows[3, 20_000:] + 1e-3 * torch.randn(4, 20_000)
        rows[2, 30_000:] *= 1e4
        last = torch.randn(d) if known else None
        # Float64 itself has 1e-16 of squares that are 1e12 times as large.
        allowed = 1e-5 if ratio < 1e6 else 1e-3
        assert relative_error(Gram.of(Rows.of(rows), last, backend).sqdist, distances(rows)) < allowed


class TestHugeRows:
    """One row at 1e30 must not touch what is known of the others."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("mixings", [(), (NNM(f=2),), (Bucketing(),), (NNM(f=2), Bucketing())])
    def test_distances_of_the_others(
        self, dtype: torch.dtype, mixings: tuple[NNM | Bucketing, ...]
    ) -> None:
        rows = kit.plain(8, 300).to(kit.DEVICE, dtype)
        rows[3] = 1e30
        gram = Gram.of(Rows.of(rows))
        for mixing in mixings:
            gram = gram.mixed(mixing.mix(gram, kit.rng()))
        clean = gram.coords[:, 3] == 0
        points = gram.coords[clean, :8] @ rows.double().cpu()
        assert clean.sum() >= 3
        assert distances(points).max() > 0
        assert relative_error(gram.sqdist[clean][:, clean], distances(points)) < 1e-6

    def test_longest_rows_that_stay(self) -> None:
        """Two float64 rows in opposite directions, as long as screening allows: no infinity anywhere."""
        rows = torch.randn(5, 4, dtype=torch.float64)
        rows[:2] = 0
        rows[0, 0] = 2.0**500
        rows[1, 0] = -(2.0**500)
        assert reference.screen(Rows.of(rows))[0].all()
        gram = Gram.of(Rows.of(rows))
        assert gram.sqdist.isfinite().all()
        assert gram.inner.isfinite().all()


class TestCost:
    def count(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Sizes of the float64 Gram matrices that were computed."""
        sizes: list[int] = []
        measure = reference.centred

        def counted(rows: Rows, last: Tensor | None) -> Tensor:
            sizes.append(len(rows))
            return measure(rows, last)

        monkeypatch.setattr(reference, "centred", counted)
        return sizes

    def test_ordinary_rows_stay_in_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = self.count(monkeypatch)
        for family in ("plain", "lopsided", "sparse"):
            blocked.gram(Rows.of(kit.FAMILIES[family](15, 20_000)), None)
        assert sizes == []

    def test_colluders_who_send_one_vector_buy_no_slow_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = self.count(monkeypatch)
        rows = kit.plain(15, 20_000)
        rows[12:] = rows[3]
        rows[5] = 0
        found = Gram.of(Rows.of(rows)).sqdist
        assert sizes == []
        assert found[12:, 12:].eq(0).all()
        assert found[3, 12:].eq(0).all()
        assert relative_error(found, distances(rows.double())) < 1e-5

    def test_replay_of_the_last_aggregate_buys_no_slow_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = self.count(monkeypatch)
        rows = kit.plain(15, 20_000)
        last = rows.mean(0)
        rows[4] = last
        blocked.gram(Rows.of(rows), last)
        assert sizes == []

    @pytest.mark.parametrize("ratio", [10, 1e3, 1e6])
    def test_offset_rows_stay_in_float32(self, monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
        sizes = self.count(monkeypatch)
        blocked.gram(Rows.of(ratio * torch.randn(5000) + torch.randn(15, 5000)), None)
        assert sizes == []

    def test_rules_that_do_not_look_measure_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(rows: Rows, last: Tensor | None) -> Tensor:
            raise AssertionError

        monkeypatch.setattr(blocked, "centred", refuse)
        rows = kit.plain(9, 50)
        assert torch.allclose(Aggregator(Mean(), (Bucketing(s=3),))(rows).vector, rows.mean(0))
