"""One snapshot of the parameters on its way to many workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from time import monotonic

from varangian.protos import ps_pb2
from varangian.protos.chunks import encode_chunk
from varangian.protos.contract import Contract
from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR
from varangian.protos.network.chunk_size import ChunkSize

SHARED = 16
"""Messages that are kept for the next pull. Workers pull at about the same time: a few are enough for all,
and the parameters are not in memory a second time."""


class Broadcast:
    """The messages of one snapshot: most are made once, and then shared by the pulls that come by."""

    def __init__(self, contract: Contract, round: int, payload: memoryview, digest: bytes) -> None:
        self.round = round
        self._payload = payload
        self.manifest = ps_pb2.PullReply(manifest=contract.manifest(round, digest)).SerializeToString()
        # Not a method of this object: that would be a circle, and what nobody needs any more would stay in
        # memory until the garbage collector finds it, many rounds later.
        self._shared: Callable[[int], bytes] = lru_cache(SHARED)(
            partial(_make_message, payload, CHUNK_BYTES)
        )

    def messages(self, chunk_bytes: int = 0) -> Iterator[bytes]:
        """The manifest and the chunks.

        With another size than 0 they begin with it, are made for this pull, and grow on a line that is fast
        enough: how long it takes until each is asked for is how long the one before it took.
        """
        yield self.manifest
        pace, at = ChunkSize(), 0
        pace.size = min(max(chunk_bytes or CHUNK_BYTES, CHUNK_FLOOR), CHUNK_BYTES)
        while at < len(self._payload):
            # Back to where the shared ones begin.
            size = min(pace.size, CHUNK_BYTES - at % CHUNK_BYTES)
            began = monotonic()
            yield self._shared(at) if size == CHUNK_BYTES else _make_message(self._payload, size, at)
            pace.took(size, monotonic() - began)
            at += size


def _make_message(payload: memoryview, size: int, at: int) -> bytes:
    return encode_chunk(at, payload[at : at + size])
