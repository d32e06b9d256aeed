"""Storage of rows: one matrix, allocated once, whose size is all that uploads can ever take."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from varangian.aggregators.kernels.ingress import store_vector
from varangian.protos.payloads.encoding import FLOAT32, TORCH, RowDtype
from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Worker
from varangian.server.rows.mapped import MappedPlan


class RowStorage(Protocol):
    """Storage of vectors until their round has used them. For the event loop."""

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, in memory or in their file."""
        ...

    def lend(self, worker: Worker, round: int, /) -> Refusal | None:
        """See that there is a row for a vector of this worker; or why there is none."""
        ...

    def rows(self, workers: Iterable[Worker], /) -> Mapping[Worker, Tensor]:
        """The stored rows of these workers."""
        ...

    def hold(self, workers: Iterable[Worker], /) -> None:
        """Lend the rows of these workers to nobody, themselves included, until they are released."""
        ...

    def release(self, workers: Iterable[Worker], /) -> None:
        """The rows of these workers are not read any more."""
        ...


class UploadStorage(RowStorage, Protocol):
    """Storage of vectors that come as bytes, in pieces."""

    def place(self, worker: Worker, column: int, /) -> tuple[Tensor, int, int]:
        """The row (k,) of a worker, the entry of its column there, and how many columns can follow in it.

        Any thread may ask while an upload of this worker is open.
        """
        ...

    def free(self, worker: Worker, column: int, /) -> int:
        """The number of columns of the worker that there is room for, from this one on."""
        ...


class HandedStorage(RowStorage, Protocol):
    """Storage of vectors of workers in this process, which hand them over as tensors."""

    def keep(self, worker: Worker, vector: Tensor, dtype: RowDtype, /) -> bool:
        """Keep a vector, rounded as on a wire of this type; returns whether all of it is finite.

        It may have fewer than d numbers; then it is the beginning of its row.

        The worker must have a row: see `lend`.
        """
        ...


class LentRows:
    """A row for each worker, or fewer that are lent to one worker after the other.

    Args:
        count: how many vectors there can be at once.
        d: columns of each.
        dtype: how they are kept.
        needed: whether the vector of a worker is still on its way, waits to be used, or is being used.
        folder: for a file that they lie in; None keeps them in memory.

    Raises:
        OSError: there is no room for the file, or no such folder.
    """

    def __init__(
        self,
        count: int,
        d: int,
        dtype: RowDtype,
        needed: Callable[[Worker], bool | None],
        folder: Path | None = None,
    ) -> None:
        self._d = d
        self._rows: tuple[Tensor, ...] = allocate_rows(count, d, dtype, folder).unbind()
        self._needed = needed
        self._free = [*range(count)]
        self._lent: dict[Worker, int] = {}
        self._held = set[Worker]()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self._rows)

    def add(self, rows: Tensor) -> None:
        """Lend these rows (k, d), too."""
        for row in rows:
            heapq.heappush(self._free, len(self._rows))
            self._rows = (*self._rows, row)

    def lend(self, worker: Worker, round: int) -> Refusal | None:
        """BUSY while there is no row: those who have one will be done with it, or be given up."""
        if worker in self._held:
            return Refusal.BUSY
        if worker not in self._lent:
            if not self._free:
                self._collect()
            if not self._free:
                return Refusal.BUSY
            self._lent[worker] = heapq.heappop(self._free)
        return None

    def place(self, worker: Worker, column: int) -> tuple[Tensor, int, int]:
        return self._rows[self._lent[worker]], column, self.free(worker, column)

    def free(self, worker: Worker, column: int) -> int:
        return self._d - column

    def keep(self, worker: Worker, vector: Tensor, dtype: RowDtype) -> bool:
        sent = vector.detach().to("cpu", TORCH[dtype]).contiguous()
        return store_vector(sent, self._rows[self._lent[worker]][: len(sent)])

    def rows(self, workers: Iterable[Worker]) -> Mapping[Worker, Tensor]:
        return {worker: self._rows[self._lent[worker]] for worker in workers}

    def hold(self, workers: Iterable[Worker]) -> None:
        self._held.update(workers)

    def release(self, workers: Iterable[Worker]) -> None:
        self._held.difference_update(workers)

    def _collect(self) -> None:
        """Take back the rows that are no longer needed."""
        used = [worker for worker in self._lent if self._needed(worker) or worker in self._held]
        for worker in self._lent.keys() - used:
            heapq.heappush(self._free, self._lent.pop(worker))


class RowsInPlace:
    """Vectors of workers in this process, used where they lie: on any device, and without a copy.

    Whoever hands a vector over must leave its memory alone until the round that uses it is over.

    Args:
        dtype: how they are kept; the others are converted.
    """

    def __init__(self, dtype: RowDtype = FLOAT32) -> None:
        self._dtype = TORCH[dtype]
        self._rows: dict[Worker, Tensor] = {}
        self._held = set[Worker]()

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self._rows.values())

    def lend(self, worker: Worker, round: int) -> Refusal | None:
        return Refusal.BUSY if worker in self._held else None

    def keep(self, worker: Worker, vector: Tensor, dtype: RowDtype) -> bool:
        row = self._rows[worker] = vector.detach().to(TORCH[dtype]).to(self._dtype)
        # A sum is not finite if any entry is not; nor is one that overflows.
        return math.isfinite(row.sum().item()) or bool(row.isfinite().all())

    def rows(self, workers: Iterable[Worker]) -> Mapping[Worker, Tensor]:
        return {worker: self._rows[worker] for worker in workers}

    def hold(self, workers: Iterable[Worker]) -> None:
        self._held.update(workers)

    def release(self, workers: Iterable[Worker]) -> None:
        self._held.difference_update(workers)


def allocate_rows(count: int, columns: int, dtype: RowDtype, folder: Path | None = None) -> Tensor:
    """Zeros, (count, columns), in memory, or in a file in a folder.

    Memory is written to now: no round waits for the kernel to find the pages.

    Raises:
        OSError: there is no room for the file, or no such folder.
    """
    if folder is not None and count * columns:
        return MappedPlan(folder, count, columns, dtype).allocate()
    return torch.zeros(count, columns, dtype=TORCH[dtype]).fill_(0)
