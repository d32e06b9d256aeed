"""The Flag Aggregator in Gram space is the one on the d x n matrix."""

from collections.abc import Callable

import pytest
import torch
from tests.aggregators.direct import Direct
from tests.aggregators.kit import DEVICE
from torch import Tensor

from varangian.aggregators import NNM, Aggregator, Flag

N, BYZANTINE, D = 15, 3, 400


def uniform(honest: Tensor) -> Tensor:
    return torch.rand(BYZANTINE, D)


def flipped(honest: Tensor) -> Tensor:
    return -10 * honest[:BYZANTINE]


def a_little(honest: Tensor) -> Tensor:
    spread = honest.std(dim=0)
    return honest.mean(dim=0) - 1.5 * spread + 0.1 * torch.randn(BYZANTINE, D)


def long(honest: Tensor) -> Tensor:
    return 1e6 * torch.randn(BYZANTINE, D)


def nothing(honest: Tensor) -> Tensor:
    return torch.randn(BYZANTINE, D) + honest.mean(dim=0)


ATTACKS: dict[str, Callable[[Tensor], Tensor]] = {
    attack.__name__: attack for attack in (nothing, uniform, flipped, a_little, long)
}


def attacked(name: str, snr: float = 0.5) -> Tensor:
    honest = snr * torch.randn(D) + torch.randn(N - BYZANTINE, D)
    return torch.cat([honest, ATTACKS[name](honest)]).to(DEVICE)


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


ATTACK = pytest.mark.parametrize("attack", ATTACKS)
FINAL = pytest.mark.parametrize("final", ["scaled", "released", "paper"])


@ATTACK
@FINAL
@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("components", [None, 1, 3])
def test_without_pairs(attack: str, final: str, iterations: int, components: int | None) -> None:
    rows = attacked(attack).double()
    flag = Flag(final=final, iterations=iterations, components=components)  # type: ignore[arg-type]
    direct = Direct(rows, components, iterations=iterations)
    found = Aggregator(flag)(rows)
    assert difference(found.vector, direct.update(final)) < 1e-6
    assert difference(found.details["explained_variance"], direct.explained.cpu()) < 1e-6


@ATTACK
@pytest.mark.parametrize("pairs", ["released", "paper"])
@pytest.mark.parametrize("lam", [1.0, 15.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_with_pairs(attack: str, pairs: str, lam: float, iterations: int) -> None:
    rows = attacked(attack).double()
    flag = Flag(lam=lam, pairs=pairs, iterations=iterations)  # type: ignore[arg-type]
    direct = Direct(rows, lam=lam, pairs=pairs, iterations=iterations)
    found = Aggregator(flag)(rows)
    assert difference(found.vector, direct.update("scaled")) < 1e-6
    assert difference(found.details["explained_variance"], direct.explained.cpu()) < 1e-6


@ATTACK
def test_float32_rows(attack: str) -> None:
    rows = attacked(attack)
    assert difference(Aggregator(Flag())(rows).vector, Direct(rows).update("scaled")) < 2e-6


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 16])
def test_any_number_of_rows(n: int) -> None:
    rows = torch.randn(n, 50, dtype=torch.float64) + torch.randn(50)
    assert difference(Aggregator(Flag())(rows).vector, Direct(rows).update("scaled")) < 1e-9


@pytest.mark.parametrize("lam", [0.0, 4.0])
@pytest.mark.parametrize("pairs", ["released", "paper"])
def test_copies_and_zeros(lam: float, pairs: str) -> None:
    """A pair of copies has no direction; a zero row has none either."""
    rows = attacked("nothing").double()
    rows[1] = rows[0]
    rows[2] = rows[0] * 2
    rows[7] = 0
    flag = Flag(lam=lam, pairs=pairs, iterations=3)  # type: ignore[arg-type]
    direct = Direct(rows, lam=lam, pairs=pairs, iterations=3)
    assert difference(Aggregator(flag)(rows).vector, direct.update("scaled")) < 1e-6


def test_pairs_of_mixed_rows_with_a_long_common_part() -> None:
    """Rows that are means of nearest neighbours lie close together, far from the origin."""
    aggregator = Aggregator(Flag(lam=2.0, pairs="paper", iterations=5), (NNM(f=2),))
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        rows = torch.randn(15, 23, generator=rng).double() + 100 * torch.randn(23, generator=rng).double()
        nearest = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").argsort(dim=1)
        mixed = torch.stack([rows[near[:13]].mean(dim=0) for near in nearest])
        wanted = Direct(mixed, lam=2.0, iterations=5, pairs="paper").update("scaled")
        spread = (mixed - mixed.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        assert (aggregator(rows).vector - wanted).norm() < 1e-6 * spread


def test_weight_of_pairs_beyond_the_digits_of_a_number() -> None:
    """Rounding may leave no room for the rows beside the pairs; the update stays finite."""
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).double()
    rows[1:5] = rows[0] * (1 + 2e-5 * torch.arange(1, 5)[:, None])
    found = Aggregator(Flag(lam=1e12, pairs="paper", iterations=5))(rows).vector
    assert found.isfinite().all()
    assert found.norm() <= rows.norm(dim=1).max()


def test_direction_between_almost_copies_is_not_used() -> None:
    """Where we leave the paper: of what is left between them, float32 kept only noise."""
    rows = attacked("nothing").double()
    rows[1] = rows[0]
    almost = rows.clone()
    almost[1] += 1e-6 * torch.randn(D).to(rows)
    flag = Aggregator(Flag(lam=4.0, pairs="paper"))
    assert difference(flag(almost).vector, flag(rows).vector) < 1e-5


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_rows_of_low_rank_are_explained_entirely(rank: int) -> None:
    """If the rank is at most m, the projection keeps all: the update is the unit mean."""
    rows = torch.randn(N, rank, dtype=torch.float64) @ torch.randn(rank, D, dtype=torch.float64)
    found = Aggregator(Flag(iterations=5))(rows)
    unit = torch.nn.functional.normalize(rows, dim=1)
    assert difference(found.vector, unit.mean(dim=0) * rows.norm(dim=1).quantile(0.5)) < 1e-9
    assert torch.allclose(found.details["explained_variance"], torch.ones(N).double())


def test_explained_variance_lies_between_zero_and_one() -> None:
    found = Aggregator(Flag(iterations=5))(attacked("a_little", snr=0.1))
    values = found.details["explained_variance"]
    assert values.min() >= 0
    assert values.max() <= 1 + 1e-9


def test_dropped_rows_have_no_explained_variance() -> None:
    rows = attacked("nothing")
    rows[3, 3] = torch.inf
    values = Aggregator(Flag())(rows).details["explained_variance"]
    assert values.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    "fields", [{"components": 0}, {"iterations": 0}, {"lam": -1.0}, {"lam": float("nan")}]
)
def test_impossible_fields(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}` should be"):
        Flag(**fields)  # type: ignore[arg-type]


def test_more_components_than_rows() -> None:
    assert Flag(components=6).requires(5, 0) == "it cannot find 6 components in 5 rows"
