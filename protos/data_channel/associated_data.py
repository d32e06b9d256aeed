"""Associated data of an encrypted payload: binds it to one transfer, so that it counts for no other."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, TypeAlias

from varangian.protos import ps_pb2

Direction: TypeAlias = Literal["pull", "push"]
DIRECTIONS: dict[Direction, int] = {"pull": 1, "push": 2}


@dataclass(frozen=True)
class AssociatedData:
    """One transfer between the server and a worker. Both ends know all of it before the first byte."""

    protocol: int
    direction: Direction
    run: str
    round: int
    worker: str
    size: int
    """Bytes of the payload in clear text."""

    @classmethod
    def of(cls, direction: Direction, manifest: ps_pb2.Manifest, worker: str, size: int) -> AssociatedData:
        """The transfer that a manifest announces."""
        return cls(manifest.protocol, direction, manifest.run_id, manifest.round, worker, size)

    def associated(self) -> bytes:
        """The associated data, in an encoding that no other transfer has.

        protocol (4 bytes) || direction (1) || length of run (4) || run || round (8) || length of worker (4)
        || worker || size (8): integers are big-endian, texts UTF-8, and lengths count bytes.
        """
        run, worker = self.run.encode(), self.worker.encode()
        return b"".join(
            (
                struct.pack(">IBI", self.protocol, DIRECTIONS[self.direction], len(run)),
                run,
                struct.pack(">QI", self.round, len(worker)),
                worker,
                struct.pack(">Q", self.size),
            )
        )
