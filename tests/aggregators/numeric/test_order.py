"""Sorting networks sort."""

from itertools import product

import pytest
import torch

from varangian.aggregators.numeric.order import network, ordered


@pytest.mark.parametrize("n", range(1, 11))
def test_sorts_all_zeros_and_ones(n: int) -> None:
    """A network that sorts all columns of zeros and ones sorts everything (Knuth, volume 3, 5.3.4)."""
    columns = torch.tensor(list(product([0.0, 1.0], repeat=n))).T
    assert torch.equal(torch.stack(ordered(columns, 0, n - 1)), columns.sort(dim=0).values)


@pytest.mark.parametrize("n", [2, 15, 16, 33, 50])
def test_wanted_ranks_only(n: int) -> None:
    block = torch.randn(n, 40)
    before = block.clone()
    wanted = block.sort(dim=0).values
    for first, last in [(0, 0), (n // 2, n // 2), (n // 4, n - n // 4 - 1), (n - 1, n - 1)]:
        assert torch.equal(torch.stack(ordered(block, first, last)), wanted[first : last + 1])
    assert torch.equal(block, before)


def test_what_is_not_wanted_is_not_computed() -> None:
    assert len(network(15, 7, 7)) < len(network(15, 0, 14))
    assert sum(low + high for *_, low, high in network(8, 0, 0)) == 7, "a minimum of 8 takes 7"
