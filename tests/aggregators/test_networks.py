"""Sorting networks, by the zero-one principle: what sorts all zeros and ones sorts everything."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from varangian.aggregators.kernels import networks


@pytest.mark.parametrize("n", range(1, networks.NARROW + 1))
def test_zero_one_principle(n: int) -> None:
    columns = (torch.arange(2**n)[None, :] >> torch.arange(n)[:, None] & 1).byte()
    for _, low, high in networks.comparators(n):
        a, b = columns[low].clone(), columns[high].clone()
        columns[low], columns[high] = torch.minimum(a, b), torch.maximum(a, b)
    assert (columns[1:] >= columns[:-1]).all()


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 31, 32, 33, 50, 64, 70, 100])
def test_merges_of_sorted_blocks(n: int) -> None:
    """Blocks that are sorted hold ones from some rank on: those columns are few, or drawn."""
    ones = torch.randint(0, 2, (n, 4000)) * (torch.rand(n, 4000) < torch.rand(4000))
    wanted = ones.sort(dim=0).values
    at = 0
    while at < n:
        size = networks.WIDE if at + networks.WIDE <= n else min(networks.NARROW, n - at)
        ones[at : at + size] = ones[at : at + size].sort(dim=0).values
        at += size
    for summed in (None, (n // 2, n // 2 + 1), (n // 5, n - n // 5)):
        found = _merged(ones.clone(), networks.merges(n, summed))
        if summed is None:
            assert torch.equal(found, wanted)
        else:
            assert torch.equal(found[slice(*summed)].sum(0), wanted[slice(*summed)].sum(0))


def test_header_is_what_this_module_writes() -> None:
    assert Path(networks.__file__).with_name("networks.h").read_text() == networks.header()


def _merged(rows: Tensor, merges: Sequence[tuple[int, int, int]]) -> Tensor:
    for low, high, kind in merges:
        a, b = rows[low].clone(), rows[high].clone()
        if kind != 2:
            rows[low] = torch.minimum(a, b)
        if kind != 1:
            rows[high] = torch.maximum(a, b)
    return rows
