"""The parameters on their way from the server."""

from __future__ import annotations

from time import monotonic
from typing import Any

import torch
from torch import Tensor

from varangian.protos import codec, ps_pb2
from varangian.protos.codec import CHUNK_BYTES, CHUNK_FLOOR, Assembler
from varangian.protos.frames import unframed
from varangian.protos.silence import Silence


class Incoming:
    """Memory for parameters, used again for each download: fresh memory costs as much as the transfer."""

    def __init__(self, numel: int) -> None:
        self._numel = numel
        self._parameters: Tensor | None = None
        self.chunk_bytes = CHUNK_FLOOR
        """How large the first chunks should be; 0 on a line that has proved fast enough for any."""

    async def received(self, call: Any, digest: bytes, quiet: Silence) -> Tensor | None:
        """The payload of a download; None when the server says to ask again.

        Raises:
            CodecError: when it is not what the manifest said.
            TimeoutError: when it does not come.
        """
        if self._parameters is None:
            self._parameters = torch.empty(self._numel, dtype=torch.float32)
        row, began = codec.payload(self._parameters), monotonic()
        assembler = Assembler(len(row))
        while (data := await message(call, quiet)) is not None:
            found = unframed(data)
            if found is None:
                part = codec.decode(ps_pb2.PullReply, data)
                if part.HasField("again"):
                    return None
                found = part.chunk.offset, memoryview(part.chunk.data)
            chunk = assembler.add(*found)
            row[assembler.passed - len(chunk) : assembler.passed] = chunk
        assembler.finish(digest)
        self._took(len(row), monotonic() - began)
        return self._parameters

    def stalled(self) -> None:
        """Nothing came in time: ask for small pieces."""
        self.chunk_bytes = CHUNK_FLOOR

    def _took(self, size: int, seconds: float) -> None:
        """What arrives in a second should be one message, or several."""
        rate = int(size / max(seconds, 1e-3))
        self.chunk_bytes = 0 if rate >= CHUNK_BYTES else max(CHUNK_FLOOR, rate)


async def message(call: Any, quiet: Silence) -> bytes | None:
    """The next message of a pull; None at its end."""
    data: object = await quiet.broken_by(call.read())
    return data if isinstance(data, bytes) else None
