"""Where pushed vectors land: one matrix, allocated once, a row for each worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class RowStore:
    """(n, d) float32, reused every round; its size is all that uploads can ever take.

    The wire is little-endian, as is every processor that torch is built for, so bytes land as they come.
    """

    def __init__(self, workers: Sequence[str], d: int) -> None:
        self._matrix = torch.empty(len(workers), d, dtype=torch.float32)
        self._index = {worker: i for i, worker in enumerate(workers)}

    def row(self, worker: str) -> Tensor:
        """(d,), a view."""
        return self._matrix[self._index[worker]]

    def rows(self, workers: Iterable[str]) -> dict[str, Tensor]:
        return {worker: self.row(worker) for worker in workers}

    def buffer(self, worker: str) -> memoryview:
        """The same row as d * 4 writable bytes."""
        return self.row(worker).numpy().data.cast("B")
