"""Parameters: their versions in memory, the snapshot that workers pull, and the norm of a vector."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from varangian.protos.payloads.encoding import payload_digest

BLOCK = 1 << 15
"""Entries that are widened at once for a norm, while they are in cache."""


class Version:
    """One version of the parameters, whose memory is left alone as long as this or its payload is held."""

    def __init__(self, parameters: Tensor, memory: object) -> None:
        self.parameters = parameters
        """(d,) float32, read-only, on the device of the learner."""
        self._memory = memory
        """Its last reference lets the memory be used again: of parameters on the CPU an array of numpy,
        which every view of the payload, and every part of one, keeps alive and nothing else does."""

    @cached_property
    def payload(self) -> memoryview:
        """The parameters as little-endian float32, read-only; without a copy on the CPU."""
        memory = self._memory
        array = memory if isinstance(memory, np.ndarray) else self.parameters.cpu().numpy()
        return array.data.cast("B").toreadonly()

    @cached_property
    def digest(self) -> bytes:
        """As `payload_digest` makes it of the payload."""
        return payload_digest(self.payload)

    @property
    def encoded(self) -> bool:
        """Whether somebody has asked for the digest, as who sends the payload does."""
        return "digest" in self.__dict__


class ParameterVersions:
    """Memory for parameters (d,) float32: two vectors, or more while an old one is still being read.

    A new version is written beside the current one, so a step that fails has changed nothing, and whoever
    still sends the old one needs no copy of it. Memory is used again: new memory costs five times a copy.

    Args:
        first: the first version, which is copied.
        device: where all versions are.
    """

    def __init__(self, first: Tensor, device: torch.device | str = "cpu") -> None:
        self._free: list[Tensor] = []
        self._publish(first.detach().to(device, torch.float32, copy=True).contiguous())

    @property
    def current(self) -> Tensor:
        """(d,), read-only."""
        return self.version.parameters

    @property
    def payload(self) -> memoryview:
        """The current version as little-endian float32, read-only; read as long as it is held."""
        return self.version.payload

    def draft(self) -> Tensor:
        """Memory for the next version, with anything in it; to be published or discarded."""
        return self._free.pop() if self._free else torch.empty_like(self.current)

    def publish(self, draft: Tensor) -> None:
        """Make it the current version."""
        self._publish(draft)

    def discard(self, draft: Tensor) -> None:
        self._free.append(draft)

    def _publish(self, parameters: Tensor) -> None:
        memory = parameters.numpy() if parameters.device.type == "cpu" else _Memory()
        weakref.finalize(memory, self._free.append, parameters).atexit = False
        self.version = Version(parameters, memory)


class _Memory:
    """Memory of a device, for as long as a version refers to it."""


@dataclass(frozen=True)
class Snapshot:
    """The parameters that a round starts from, shared by all who pull."""

    round: int
    finished: bool
    reason: str
    """The reason why the run is finished, or empty."""
    version: Version

    @classmethod
    def of(cls, version: Version, round: int = 0) -> Snapshot:
        return cls(round, False, "", version)

    @property
    def parameters(self) -> Tensor:
        """(d,), read-only, for workers of this process."""
        return self.version.parameters

    @property
    def payload(self) -> memoryview:
        """Little-endian float32; read-only."""
        return self.version.payload

    @property
    def digest(self) -> bytes:
        """As `payload_digest` makes it of the payload."""
        return self.version.digest


def norm(vector: Tensor) -> float | None:
    """Euclidean norm; None when an entry is not finite. In float64 no finite float32 vector overflows."""
    if len(vector) <= BLOCK or vector.device.type != "cpu":  # a GPU widens what it reads without memory
        length = torch.linalg.vector_norm(vector, dtype=torch.float64).item()
        return length if length < float("inf") else None
    blocks = vector.split(BLOCK)
    # One tensor for all results: small ones between the widened blocks would keep the allocator from using
    # the memory of a block again, which comes to half of the vector.
    parts = torch.empty(len(blocks), dtype=torch.float64)
    for block, part in zip(blocks, parts, strict=True):
        torch.linalg.vector_norm(block, dtype=torch.float64, out=part)
    length = torch.linalg.vector_norm(parts).item()
    return length if length < float("inf") else None
