"""Parameters: their versions in memory, the snapshot that workers pull, and the norm of a vector."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from varangian.protos.encoding import payload_digest

BLOCK = 1 << 15
"""Entries that are widened at once for a norm, while they are in cache."""


class ParameterVersions:
    """Memory for parameters (d,) float32: two vectors, or more while an old one is still being read.

    A new version is written beside the current one, so a step that fails has changed nothing, and whoever
    still sends the old one needs no copy of it. Memory is used again: new memory costs five times a copy.
    """

    def __init__(self, first: Tensor) -> None:
        self._free: list[Tensor] = []
        self._publish(first.detach().to("cpu", torch.float32, copy=True).contiguous())

    @property
    def current(self) -> Tensor:
        """(d,), read-only."""
        return self._current

    @property
    def payload(self) -> memoryview:
        """The current version as little-endian float32, read-only; read as long as it is held."""
        return self._payload

    def draft(self) -> Tensor:
        """Memory for the next version, with anything in it; to be published or discarded."""
        return self._free.pop() if self._free else torch.empty_like(self._current)

    def publish(self, draft: Tensor) -> None:
        """Make it the current version."""
        self._publish(draft)

    def discard(self, draft: Tensor) -> None:
        self._free.append(draft)

    def _publish(self, version: Tensor) -> None:
        self._current = version
        array = version.numpy()
        # Every view of the payload, and every part of one, keeps this array alive and no other does.
        weakref.finalize(array, self._free.append, version).atexit = False
        self._payload = array.data.cast("B").toreadonly()


@dataclass(frozen=True)
class Snapshot:
    """The parameters that a round starts from, made once and shared by all who pull."""

    round: int
    finished: bool
    reason: str
    """The reason why the run is finished, or empty."""
    payload: memoryview
    """Little-endian float32; read-only."""
    digest: bytes
    """As `payload_digest` makes it of the payload."""

    @classmethod
    def of(cls, payload: bytes | memoryview, round: int = 0) -> Snapshot:
        return cls(round, False, "", memoryview(payload), payload_digest(payload))


def norm(vector: Tensor) -> float | None:
    """Euclidean norm; None when an entry is not finite. In float64 no finite float32 vector overflows."""
    blocks = vector.split(BLOCK)
    # One tensor for all results: small ones between the widened blocks would keep the allocator from using
    # the memory of a block again, which comes to half of the vector.
    parts = torch.empty(len(blocks), dtype=torch.float64)
    for block, part in zip(blocks, parts, strict=True):
        torch.linalg.vector_norm(block, dtype=torch.float64, out=part)
    length = torch.linalg.vector_norm(parts).item()
    return length if length < float("inf") else None
