"""The interface of a transport in the wire benchmark: a server, and all its workers in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

Floats = npt.NDArray[np.float32]
SPACING = 16
"""Numbers between the starts of two vectors in one long array: all differ, in the memory of one."""


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
        """The vectors of the workers: no two alike, and no value that a server rewrites, such as -0."""
        rng = np.random.default_rng(self.numel)
        long = 0.5 + rng.random(self.numel + SPACING * self.workers, dtype=np.float32)
        return [long[SPACING * i : SPACING * i + self.numel] for i in range(self.workers)]

    def rows(self) -> Floats:
        """(workers, numel) for the server, every page of it in memory."""
        return np.ones((self.workers, self.numel), dtype=np.float32)


class Server(Protocol):
    """The receiving end, running in the background."""

    @property
    def address(self) -> str: ...

    def ready(self) -> None:
        """Prepare the next round. Not timed; when it returns, the server is idle."""
        ...

    def digests(self) -> list[str] | None:
        """Digests of the vectors of the last round, by worker; clears them. None where workers receive."""
        ...

    def close(self) -> None: ...


class Workers(Protocol):
    """All workers, in one process."""

    def round(self) -> None:
        """Transfer every vector once; returns when all are known to have arrived."""
        ...

    def digests(self) -> list[str] | None:
        """Digests of the vectors that each worker has received; None where they send."""
        ...

    def close(self) -> None: ...


class Way(Protocol):
    """One transport. Each process builds its own."""

    def serve(self, job: Job) -> Server: ...
    def connect(self, address: str, job: Job) -> Workers: ...
    def expected(self, job: Job, rounds: int) -> list[str]:
        """The expected value of `digests` after so many rounds."""
        ...


def digest(vector: Floats) -> str:
    return xxhash.xxh3_128_hexdigest(vector.data.cast("B"))


def digests(vectors: Sequence[Floats] | Floats) -> list[str]:
    return [digest(vector) for vector in vectors]


class RowServer:
    """Base of servers that receive into one matrix, a row for each worker."""

    def __init__(self, job: Job) -> None:
        self._rows = job.rows()

    def ready(self) -> None:
        pass

    def digests(self) -> list[str]:
        found = digests(self._rows)
        self._rows.fill(0)
        return found


class Pushing:
    """Base of transports that bring each worker's vector to the server."""

    server: Callable[[Job], Server]
    workers: Callable[[str, Job], Workers]

    def serve(self, job: Job) -> Server:
        return self.server(job)

    def connect(self, address: str, job: Job) -> Workers:
        return self.workers(address, job)

    def expected(self, job: Job, rounds: int) -> list[str]:
        return digests(job.vectors())
