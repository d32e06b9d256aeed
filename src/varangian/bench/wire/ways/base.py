"""What every way of moving gradients has to do, so that all are measured alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

Floats = npt.NDArray[np.float32]
SPACING = 16
"""Each worker's vector begins so many numbers later in one long one: all differ, in the memory of one."""


@dataclass(frozen=True)
class Job:
    """`workers` vectors of `numel` float32 each, all at once."""

    workers: int
    numel: int

    @property
    def size(self) -> int:
        """Bytes of one vector."""
        return 4 * self.numel

    @property
    def total(self) -> int:
        return self.workers * self.size

    def vectors(self) -> list[Floats]:
        """What the workers send: no two alike, and nothing that a server would screen: no -0, say."""
        rng = np.random.default_rng(self.numel)
        long = 0.5 + rng.random(self.numel + SPACING * self.workers, dtype=np.float32)
        return [long[SPACING * i : SPACING * i + self.numel] for i in range(self.workers)]

    def rows(self) -> Floats:
        """(workers, numel) with its memory in place, for the server."""
        return np.ones((self.workers, self.numel), dtype=np.float32)


class Server(Protocol):
    """The receiving end, running in the background."""

    @property
    def address(self) -> str: ...

    def ready(self) -> None:
        """Get ready for the next round. Not timed; nothing else of the server's may run afterwards."""
        ...

    def digests(self) -> list[str] | None:
        """Of what the last round brought, by worker; and forget it. None where workers receive."""
        ...

    def close(self) -> None: ...


class Workers(Protocol):
    """All workers, in one process."""

    def round(self) -> None:
        """Move everything once; return when it is known to have arrived."""
        ...

    def digests(self) -> list[str] | None:
        """Of what each worker has received; None where they send."""
        ...

    def close(self) -> None: ...


class Hop(Protocol):
    """One way. Made anew in each process."""

    def serve(self, job: Job) -> Server: ...
    def connect(self, address: str, job: Job) -> Workers: ...
    def expected(self, job: Job) -> list[str]:
        """What `digests` should be."""
        ...


def digest(vector: Floats) -> str:
    return xxhash.xxh3_128_hexdigest(vector.data.cast("B"))


def digests(vectors: Sequence[Floats] | Floats) -> list[str]:
    return [digest(vector) for vector in vectors]


class Pushing:
    """Of a way on which the server ends up with the vector of each worker."""

    def expected(self, job: Job) -> list[str]:
        return digests(job.vectors())
