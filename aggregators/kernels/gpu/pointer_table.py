"""Pointer table: addresses of n separate tensors on a GPU, so that Triton kernels need no stacked copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.aggregators.rows import Rows


@dataclass(frozen=True)
class Table:
    """Offsets of the rows from the first, in elements."""

    rows: Rows
    offsets: Tensor  # (n,) int64 on the device
    align: int

    @classmethod
    def of(cls, rows: Rows) -> Table:
        vectors = tuple(v.contiguous() for v in rows.vectors)
        item, first = vectors[0].element_size(), vectors[0].data_ptr()
        offsets = [(v.data_ptr() - first) // item for v in vectors]
        align = 16 // item if all(offset % (16 // item) == 0 for offset in offsets) else 1
        # Without waiting for the device; `rows` keeps what the addresses point to.
        table = torch.tensor(offsets, device="cpu").to(rows.device, non_blocking=True)
        return cls(Rows(vectors), table, align)

    @property
    def base(self) -> Tensor:
        return self.rows.vectors[0]

    @property
    def tiny(self) -> float:
        return self.rows.least_normal
