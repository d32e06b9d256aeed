"""The n vectors of a round, read in blocks of columns and never written.

n  rows (workers)        m  rows that survived screening
d  columns (parameters)  b  columns of one block
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

BLOCK = 1 << 14
"""Columns per block: 16 float32 rows of this width fit a core's L2 cache."""


class RowsError(ValueError):
    """Rows of the wrong form, a mistake of the caller: not flat, of unequal lengths or types."""


@dataclass(frozen=True, eq=False)
class Rows:
    """n flat vectors of the same length, dtype and device. Read-only by contract."""

    vectors: tuple[Tensor, ...]  # n of (d,)

    @classmethod
    def of(cls, rows: Rows | Tensor | Sequence[Any]) -> Rows:
        """Rows from a 2-D tensor or array, or a sequence of 1-D tensors or arrays.

        Raises:
            RowsError: no rows, not flat, unequal lengths, dtypes or devices, or not floating point.
        """
        if isinstance(rows, Rows):
            return rows
        # As one tensor first: rows of a matrix that stay in one storage are read without copies.
        whole = tensor_of(rows, "rows") if isinstance(rows, np.ndarray) and rows.ndim == 2 else rows
        if isinstance(whole, Tensor) and whole.dim() == 2 and len(whole):
            _vector(whole[0], 0)  # the others are like it
            return cls(whole.detach().unbind())
        vectors = tuple(_vector(row, i) for i, row in enumerate(whole))
        if not vectors:
            raise RowsError("`rows` should hold at least one vector. Found none.")
        first = vectors[0]
        for i, v in enumerate(vectors):
            if v.shape != first.shape:
                raise RowsError(
                    f"`rows[{i}]` should have {first.numel()} entries, as `rows[0]`. Found {v.numel()}."
                )
            if v.dtype != first.dtype or v.device != first.device:
                raise RowsError(
                    f"`rows[{i}]` should be {first.dtype} on {first.device}, as `rows[0]`. "
                    f"Found {v.dtype} on {v.device}."
                )
        return cls(vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def d(self) -> int:
        return self.vectors[0].numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.vectors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.vectors[0].device

    @property
    def working_dtype(self) -> torch.dtype:
        """The type in which blocks are computed: float64 stays, narrower types widen to float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def keep(self, chosen: Sequence[int]) -> Rows:
        return self if len(chosen) == len(self) else Rows(tuple(self.vectors[i] for i in chosen))

    def columns(self, start: int, stop: int) -> Rows:
        """The same rows, of which only these columns are left."""
        if start == 0 and stop == self.d:
            return self
        return Rows(tuple(vector[start:stop] for vector in self.vectors))

    @property
    def least_normal(self) -> float:
        """The least magnitude that does not count as zero: the least normal number of the working type."""
        return torch.finfo(self.working_dtype).tiny

    def flushed(self, subnormal: Tensor) -> Rows:
        """The rows with zeros for subnormal numbers; `subnormal` (n,) says which rows have any."""
        if not bool(subnormal.any()):
            return self
        each = zip(self.vectors, subnormal.tolist(), strict=True)
        least = self.least_normal
        return Rows(tuple(v.masked_fill(v.abs() < least, 0) if flush else v for v, flush in each))

    def block(self, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Columns start to stop, (n, b); a view where the rows lie in one matrix already."""
        dtype = dtype or self.working_dtype
        if self._matrix is not None:
            return self._matrix[:, start:stop].to(dtype)
        return torch.stack([v[start:stop] for v in self.vectors]).to(dtype)

    def blocks(
        self, width: int = BLOCK, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self.d, width):
            columns = slice(start, min(start + width, self.d))
            yield columns, self.block(columns.start, columns.stop, dtype)

    @property
    def contiguous(self) -> Rows:
        """The same rows, each in one piece of memory."""
        return self if self._copied is None else self._copied

    @cached_property
    def _copied(self) -> Rows | None:
        """Copies, each in one piece of memory; None where all of the rows are.

        Not these rows themselves: that would be a circle, and the vectors of a round would stay in memory
        until the garbage collector finds them.
        """
        if all(vector.is_contiguous() for vector in self.vectors):
            return None
        return Rows(tuple(vector.contiguous() for vector in self.vectors))

    @cached_property
    def addresses(self) -> NDArray[np.int64]:
        """Addresses of the rows in memory, (n,); valid as long as the rows themselves."""
        return np.array([vector.data_ptr() for vector in self.vectors], dtype=np.int64)

    @cached_property
    def _matrix(self) -> Tensor | None:
        """The rows as one strided view, when equally spaced in one storage; else None."""
        first = self.vectors[0]
        if any(v.stride() != (1,) for v in self.vectors):
            return None
        item, storage = first.element_size(), first.untyped_storage().data_ptr()
        if any(v.untyped_storage().data_ptr() != storage for v in self.vectors):
            return None
        starts = [v.data_ptr() for v in self.vectors]
        steps = {b - a for a, b in pairwise(starts)} or {self.d * item}
        step = steps.pop()
        if steps or step < self.d * item or step % item:
            return None
        return first.as_strided((len(self), self.d), (step // item, 1))


def tensor_of(values: Any, name: str) -> Tensor:
    """Values as a tensor, without a copy where torch can share their memory.

    Raises:
        RowsError: they are not numbers.
    """
    if isinstance(values, Tensor):
        return values
    try:
        with warnings.catch_warnings():
            # A read-only array is exactly what we want: nothing here writes to a row.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.as_tensor(
                _readable(values) if isinstance(values, np.ndarray) else values, device="cpu"
            )
    except (TypeError, ValueError, RuntimeError) as error:
        raise RowsError(f"`{name}` should be a tensor or an array of numbers. {error}") from error


def _readable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array as torch can share it: copied if it has negative strides or a foreign byte order."""
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array.copy() if any(stride < 0 for stride in array.strides) else array


def _vector(row: Any, i: int) -> Tensor:
    vector = tensor_of(row, f"rows[{i}]")
    if vector.dim() != 1:
        raise RowsError(f"`rows[{i}]` should be a flat vector. Found shape {tuple(vector.shape)}.")
    if vector.dtype not in FLOATS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise RowsError(f"`rows[{i}]` should be one of {known}. Found {vector.dtype}.")
    if vector.numel() == 0:
        raise RowsError(f"`rows[{i}]` should have at least one entry. Found none.")
    return vector.detach()
