"""Tickets: what ties the payload of a call to the data connection that it travels on."""

from __future__ import annotations

import asyncio
import secrets

from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.connection import TICKET, DataConnection, DataConnectionError
from varangian.protos.data_channel.encrypted_stream import KEY


class DataTicket:
    """The ticket of one call: valid in its context, and accepted once.

    Args:
        transfer: the payload of the call.
        encrypted: whether it is to be encrypted, with a key that only the caller is told.
        valid: the tickets of all open calls, by their secret.
    """

    def __init__(self, transfer: AssociatedData, encrypted: bool, valid: dict[bytes, DataTicket]) -> None:
        self.worker = transfer.worker
        self._transfer = transfer
        self._secret = secrets.token_bytes(TICKET)
        self._key = secrets.token_bytes(KEY) if encrypted else b""
        self.text = (self._secret + self._key).hex()
        """The ticket as the caller is told it over gRPC."""
        self._valid = valid
        self._connection: DataConnection | None = None
        self._complete = False
        self._answered = asyncio.Event()
        """There is a connection, or will never be one."""
        self._over = asyncio.Event()

    def __enter__(self) -> DataTicket:
        if self._over.is_set() or self._secret in self._valid:
            raise RuntimeError("A ticket is used once.")
        self._valid[self._secret] = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None and not self._complete:
            self._connection.abort()
        self._over.set()
        self.void()

    async def connection(self) -> DataConnection:
        """The connection on which the ticket was shown, once it is; the payload comes next on it.

        Raises:
            DataConnectionError: nobody can show it any more.
        """
        await self._answered.wait()
        if self._connection is None:
            raise DataConnectionError("The data port is closed.")
        self._connection.begin(self._key, self._transfer)
        return self._connection

    def complete(self) -> None:
        """The payload has arrived, so the connection can serve the next ticket after this context."""
        assert self._connection is not None
        self._connection.end()
        self._complete = True

    def void(self) -> None:
        """Accept the ticket no more."""
        self._valid.pop(self._secret, None)
        self._answered.set()

    async def serve(self, connection: DataConnection) -> bool:
        """Lend a connection to the call until that ends; returns whether it can be used again."""
        self._connection = connection
        self.void()
        await self._over.wait()
        return not connection.closed
