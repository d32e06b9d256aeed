"""A push on its way into the row of its slot."""

from __future__ import annotations

import torch

from varangian.server.views import Slot


class Landing:
    """Takes the bytes of a payload of `size`, in order, and leaves float32 in the slot."""

    def __init__(self, slot: Slot, size: int) -> None:
        self._slot = slot
        self._narrow = size != len(slot.buffer)
        self._bytes = memoryview(bytearray(size)) if self._narrow else slot.buffer
        self._at = 0

    async def put(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        end = self._at + len(data)
        self._bytes[self._at : end] = data
        self._at = end
        if self._narrow and end == len(self._bytes):
            wide = torch.frombuffer(self._slot.buffer, dtype=torch.float32)
            wide.copy_(torch.frombuffer(self._bytes, dtype=torch.bfloat16))
