"""One snapshot of the parameters on its way to many workers."""

from __future__ import annotations

from collections.abc import Iterator

from varangian.protos import ps_pb2
from varangian.protos.codec import Contract, chunks


class Broadcast:
    """The messages of one snapshot: each is made when it is first wanted, then shared by every pull."""

    def __init__(self, contract: Contract, round: int, payload: memoryview, digest: bytes) -> None:
        self.round = round
        self._made = [ps_pb2.PullReply(manifest=contract.manifest(round, digest)).SerializeToString()]
        self._rest = chunks(payload)

    def __iter__(self) -> Iterator[bytes]:
        index = 0
        while index < len(self._made) or self._make():
            yield self._made[index]
            index += 1

    def _make(self) -> bool:
        message = next(self._rest, None)
        if message is None:
            return False
        self._made.append(message)
        return True
