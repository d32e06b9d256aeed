"""Sorting networks, by the zero-one principle: what sorts all zeros and ones sorts everything."""

from collections.abc import Sequence

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


def test_zero_one_principle_of_the_widest() -> None:
    columns = _of_sorted_blocks([networks.NARROW] * 2)
    for run, low, high in networks.comparators(networks.WIDE):
        if run >= networks.NARROW:
            a, b = columns[low].clone(), columns[high].clone()
            columns[low], columns[high] = torch.minimum(a, b), torch.maximum(a, b)
    assert (columns[1:] >= columns[:-1]).all()


@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 31, 32, 33, 50, 64, 70, 100])
def test_merges_of_sorted_blocks(n: int) -> None:
    wide, left = divmod(n, networks.WIDE)
    sizes = [networks.WIDE] * wide + [
        min(networks.NARROW, left - i) for i in range(0, left, networks.NARROW)
    ]
    columns = _of_sorted_blocks(sizes)
    wanted = columns.sort(dim=0).values
    assert torch.equal(_merged(columns.clone(), networks.merges(n, None)), wanted)
    for lo, hi in ((n // 2, n // 2 + 1), (n // 5, n - n // 5)):
        found = _merged(columns.clone(), networks.merges(n, (lo, hi)))
        assert torch.equal(found[lo:hi].sum(0), wanted[lo:hi].sum(0))


def _of_sorted_blocks(sizes: Sequence[int]) -> Tensor:
    """All columns of zeros and ones of which these blocks are sorted: (n, columns)."""
    ones = torch.cartesian_prod(*[torch.arange(size + 1) for size in sizes]).reshape(-1, len(sizes))
    blocks = [torch.arange(size)[:, None] >= size - ones[:, i] for i, size in enumerate(sizes)]
    return torch.cat(blocks).byte()


def test_header_is_what_this_module_writes() -> None:
    assert networks.HEADER.read_text() == networks.header()


def _merged(rows: Tensor, merges: Sequence[tuple[int, int, int]]) -> Tensor:
    for low, high, kind in merges:
        a, b = rows[low].clone(), rows[high].clone()
        if kind != 2:
            rows[low] = torch.minimum(a, b)
        if kind != 1:
            rows[high] = torch.maximum(a, b)
    return rows
