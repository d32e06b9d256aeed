"""What connects a call to the connection that its payload travels on."""

from __future__ import annotations

import asyncio
import secrets

from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import TICKET, DataConnection, DataConnectionError
from varangian.protos.data_channel.sealing import KEY


class DataTicket:
    """What one call may be found by. Valid in its context, and there once.

    Args:
        transfer: the payload of the call.
        sealed: whether it is to be encrypted, with a key that only the caller is told.
        valid: where it can be found.
    """

    def __init__(self, transfer: AssociatedData, sealed: bool, valid: dict[bytes, DataTicket]) -> None:
        self.worker = transfer.worker
        self._transfer = transfer
        self._secret = secrets.token_bytes(TICKET)
        self._key = secrets.token_bytes(KEY) if sealed else b""
        self.text = (self._secret + self._key).hex()
        """What the caller is told."""
        self._valid = valid
        self._line: DataConnection | None = None
        self._complete = False
        self._answered = asyncio.Event()
        """There is a line, or will never be one."""
        self._over = asyncio.Event()

    def __enter__(self) -> DataTicket:
        if self._over.is_set() or self._secret in self._valid:
            raise RuntimeError("A ticket is used once.")
        self._valid[self._secret] = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._line is not None and not self._complete:
            self._line.abort()
        self._over.set()
        self.void()

    async def line(self) -> DataConnection:
        """The connection on which it was shown, as soon as it is; the payload is next on it.

        Raises:
            LineError: nobody can show it any more.
        """
        await self._answered.wait()
        if self._line is None:
            raise DataConnectionError("The lane is closed.")
        self._line.begin(self._key, self._transfer)
        return self._line

    def complete(self) -> None:
        """The payload is through, so the connection can serve the next ticket after this context."""
        assert self._line is not None
        self._line.end()
        self._complete = True

    def void(self) -> None:
        """Nobody can show it from now on."""
        self._valid.pop(self._secret, None)
        self._answered.set()

    async def served(self, line: DataConnection) -> bool:
        """Lend a line to the call until that ends; whether it can be used again."""
        self._line = line
        self.void()
        await self._over.wait()
        return not line.closed
