"""Store of latest vectors: one of each registered worker and its round, in memory or on disk.

n  registered workers     d  parameters
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from varangian.server.protocol.events import Worker

StoredDtype: TypeAlias = Literal["float32", "bfloat16"]

TORCH: Mapping[StoredDtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SPARE = 1
"""Spare rows: the next vector is written there."""
ZEROS = 1
"""Rows of zeros, for workers that have never pushed. Never written to, so it takes no memory."""
SPACE = "Free some space, use another folder, or keep bfloat16."
STRIP = 1 << 16
"""Numbers that are converted at once."""


class NoRoom(OSError):
    """The disk has less space than the latest vectors need."""


@dataclass(frozen=True)
class LatestPlan:
    """The memory or disk that a store of latest vectors takes, known before anything is allocated."""

    n: int
    d: int
    dtype: StoredDtype = "float32"
    folder: Path | None = None
    """The folder on disk for the vectors; None keeps them in memory."""

    def __post_init__(self) -> None:
        if min(self.n, self.d) < 1:
            raise ValueError(f"`n` and `d` should be at least 1. Found {self.n} and {self.d}.")
        if self.dtype not in TORCH:
            raise ValueError(f"`dtype` should be float32 or bfloat16. Found {self.dtype!r}.")

    @property
    def row_bytes(self) -> int:
        return self.d * TORCH[self.dtype].itemsize

    @property
    def bytes(self) -> int:
        """One row for each worker, and the one that is being written."""
        return (self.n + SPARE) * self.row_bytes

    def sentence(self) -> str:
        """A sentence about its size, for the start of a run."""
        where = "memory" if self.folder is None else f"a file in {self.folder}"
        return (
            f"The latest vectors of {self.n} workers take up to {format_bytes(self.bytes)} in {where}: "
            f"{self.n} + {SPARE} rows of {self.d} numbers in {self.dtype}."
        )

    def check_room(self) -> None:
        """See that the folder exists and its disk has room.

        Raises:
            NoRoom: it has not.
            NotADirectoryError: there is no such folder.
        """
        if self.folder is None:
            return
        if not self.folder.is_dir():
            raise NotADirectoryError(f"`folder` should be a folder that exists. Found {self.folder}.")
        free = shutil.disk_usage(self.folder).free
        if free < self.bytes:
            raise NoRoom(
                f"The disk of {self.folder} should have {format_bytes(self.bytes)} free for the latest "
                f"vectors of {self.n} workers. Found {format_bytes(free)}. {SPACE}"
            )


class LatestStore:
    """The latest vectors of n workers; those of workers that have never pushed are zero.

    A vector is written to a spare row, and only then becomes the worker's: whatever goes wrong on the way,
    the vector before it stays as it was. Memory and disk are taken as workers come.

    Raises:
        NoRoom: as `LatestPlan.check_room`.
        ValueError: names that are not different.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        d: int,
        *,
        dtype: StoredDtype = "float32",
        folder: Path | None = None,
    ) -> None:
        self.workers = tuple(sorted(workers))
        if len(set(self.workers)) < len(self.workers):
            raise ValueError(f"`workers` should be different names. Found {self.workers}.")
        self.plan = LatestPlan(len(self.workers), d, dtype, folder)
        self.plan.check_room()
        self._backing: _Backing = _Memory(self.plan) if folder is None else _File(self.plan, folder)
        self._rows = dict[Worker, int]()
        self._stamps = dict[Worker, int]()
        self._free = [*range(len(self.workers) + SPARE)]

    @property
    def stamps(self) -> Mapping[Worker, int]:
        """The round of the vector of each worker that has one."""
        return MappingProxyType(self._stamps)

    def replace(self, worker: Worker, vector: Tensor, round: int) -> None:
        """Keep this vector in place of the worker's last one.

        Args:
            worker: whose.
            vector: (d,), finite; rounded to the nearest if the store is in bfloat16.
            round: in which it was made, not before that of the last one.

        Raises:
            KeyError: the worker is not registered.
            ValueError: not (d,), out of order, or too large for bfloat16. Nothing has changed then.
            NoRoom: the disk is full. Nothing has changed then either.
        """
        self._check(worker, vector, round)
        free = self._free[-1]
        try:
            self._backing.write(free, vector.detach())
        except OSError as error:
            where = f"The latest vector of {worker} cannot be written to {self.plan.folder}"
            raise NoRoom(f"{where}: {error.strerror}. {SPACE}") from error
        before = self._rows.get(worker)
        self._free[-1:] = [] if before is None else [before]
        self._rows[worker], self._stamps[worker] = free, round

    def expire(self, older_than: int) -> tuple[Worker, ...]:
        """Make the vectors of rounds before this one zero from here on; returns whose they were."""
        return self.forget(w for w in self.workers if self._stamps.get(w, older_than) < older_than)

    def forget(self, workers: Iterable[Worker]) -> tuple[Worker, ...]:
        """Make the vectors of these workers zero from here on; returns which of them had one."""
        forgotten = tuple(worker for worker in workers if worker in self._rows)
        for worker in forgotten:
            self._free.append(self._rows.pop(worker))
            del self._stamps[worker]
        return forgotten

    def rows(self) -> dict[Worker, Tensor]:
        """The vector (d,) of every registered worker, by name: views, of use until the next `replace`."""
        zeros = self.plan.n + SPARE
        return {worker: self._backing.row(self._rows.get(worker, zeros)) for worker in self.workers}

    def ages(self, round: int) -> dict[Worker, int]:
        """The age of each vector in rounds; only of workers that have one."""
        return {worker: round - stamp for worker, stamp in sorted(self._stamps.items())}

    def state(self) -> dict[str, Any]:
        """The vectors that are kept, with their rounds and places; views, of use until the next `replace`.

        Places belong to it because kernels may add in another order where rows lie elsewhere.
        """
        return {
            "vectors": {worker: self._backing.row(row) for worker, row in self._rows.items()},
            "rounds": dict(self._stamps),
            "rows": dict(self._rows),
            "free": list(self._free),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, in place of what is here.

        Raises:
            ValueError: it is of other workers, or of another model.
            OSError: the disk is full.
        """
        shapes = {tuple(vector.shape) for vector in state["vectors"].values()}
        if not state["vectors"].keys() <= {*self.workers} or shapes - {(self.plan.d,)}:
            found = f"Found {sorted(state['vectors'])} with vectors of {sorted(shapes)}."
            raise ValueError(f"Vectors should be ({self.plan.d},), of {', '.join(self.workers)}. {found}")
        self._rows, self._stamps = dict(state["rows"]), dict(state["rounds"])
        self._free = list(state["free"])
        for worker, row in self._rows.items():
            self._backing.write(row, state["vectors"][worker])

    def close(self) -> None:
        """Give memory and disk back, once nobody holds a row any more."""
        self._rows.clear()
        self._stamps.clear()
        self._backing.close()

    def _check(self, worker: Worker, vector: Tensor, round: int) -> None:
        if worker not in self.workers:
            raise KeyError(f"{worker!r} is not one of the {self.plan.n} registered workers")
        if vector.shape != (self.plan.d,):
            raise ValueError(f"`vector` should be ({self.plan.d},). Found {tuple(vector.shape)}.")
        if round < self._stamps.get(worker, round):
            last = self._stamps[worker]
            raise ValueError(
                f"`round` should not be before {last}, that of the last of {worker!r}. Found {round}."
            )


class _Backing(Protocol):
    """Rows of numbers, zero until they are written."""

    def row(self, i: int, /) -> Tensor: ...
    def write(self, i: int, vector: Tensor, /) -> None: ...
    def close(self) -> None: ...


class _Memory:
    """Rows in memory, which the system gives page by page when they are first written."""

    def __init__(self, plan: LatestPlan) -> None:
        self._dtype = TORCH[plan.dtype]
        self._matrix = _as_rows(np.zeros((plan.n + SPARE + ZEROS, plan.row_bytes), np.uint8), self._dtype)

    def row(self, i: int) -> Tensor:
        return self._matrix[i]

    def write(self, i: int, vector: Tensor) -> None:
        row = self._matrix[i]
        for to, strip in zip(row.split(STRIP), vector.split(STRIP), strict=True):
            to.copy_(_convert(strip, self._dtype))

    def close(self) -> None:
        self._matrix = torch.empty(0, 0, dtype=torch.float32)


class _File:
    """A sparse file without a name, of which nothing is left however the process ends.

    It is read through a memory map, but written by calls: a full disk is then an error, not a signal that
    ends the process. What was never written is not read, as some file systems need space even for that.
    """

    def __init__(self, plan: LatestPlan, folder: Path) -> None:
        self._dtype = TORCH[plan.dtype]
        self._row_bytes = plan.row_bytes
        shape = (plan.n + SPARE + ZEROS, plan.row_bytes)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._file.truncate(shape[0] * shape[1])
        self._matrix = _as_rows(np.memmap(self._file, np.uint8, "r+", shape=shape), self._dtype)
        self._zeros = _as_rows(np.zeros((ZEROS, plan.row_bytes), np.uint8), self._dtype)

    def row(self, i: int) -> Tensor:
        return self._zeros[0] if i == len(self._matrix) - ZEROS else self._matrix[i]

    def write(self, i: int, vector: Tensor) -> None:
        at = i * self._row_bytes
        for strip in vector.split(STRIP):
            data = _convert(strip, self._dtype).contiguous().view(torch.uint8).numpy().data
            at = self._write_all(data, at)

    def _write_all(self, data: memoryview, at: int) -> int:
        """Write all of it, in as many calls as that takes; returns where the next data go."""
        while data:
            count = os.pwrite(self._file.fileno(), data, at)
            data, at = data[count:], at + count
        return at

    def close(self) -> None:
        self._matrix = torch.empty(0, 0, dtype=torch.float32)
        self._file.close()


def _as_rows(matrix: np.ndarray[tuple[int, int], np.dtype[np.uint8]], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(matrix).view(dtype)


def _convert(strip: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers, on the CPU, in the type of the store."""
    kept = strip.to(device="cpu", dtype=dtype)
    if dtype is not strip.dtype and not bool(kept.isfinite().all()):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"`vector` should be finite in {name}. Found what is not, or rounds to infinity.")
    return kept


def format_bytes(count: int) -> str:
    """A number of bytes with a unit."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"
