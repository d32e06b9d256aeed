"""Liveness stream: a long-lived gRPC call by which the server sees that a worker process has died.

When it ends without another one, the server knows that the worker is gone: nobody waits for it, and a new
process may have its name at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import grpc.aio

from varangian.protos import ps_pb2
from varangian.protos.refusals import Reaction, Refusal
from varangian.worker.transport.channel import Connection
from varangian.worker.transport.errors import FailedCall, is_cancelled

AGAIN = 0.2
"""Seconds before the call is made again after its connection broke."""
LATER = 1.0
"""The same after the server refused it in a way that may pass, as when it still has calls that are dead."""


class Attendance:
    """The attendance call of one worker, over the connection that its other calls use.

    Args:
        connection: to the server; it may be made anew meanwhile.
        identity: the metadata of every call.
    """

    def __init__(self, connection: Connection, identity: Sequence[tuple[str, str]]) -> None:
        self._connection = connection
        self._identity = tuple(identity)
        self._run = ""
        self._task: asyncio.Task[None] | None = None

    def begin(self, run: str) -> None:
        """Attend this run from now on; to be called after each join."""
        if self._task is not None and not self._task.done():
            if run == self._run:
                return
            self._task.cancel()
        self._run = run
        self._task = asyncio.create_task(self._attend(run))

    async def end(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _attend(self, run: str) -> None:
        request = ps_pb2.AttendRequest(run_id=run).SerializeToString()
        while (wait := await self._stayed(request)) is not None:
            await asyncio.sleep(wait)

    async def _stayed(self, request: bytes) -> float | None:
        """Wait until the call ends; returns the seconds until the next one, None for no other."""
        call = self._connection.calls.attend(request, metadata=self._identity)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            failed = FailedCall.of(error)
            if failed.refusal is Refusal.AGE:
                return AGAIN
            if failed.code:
                # After RENEW the other calls look for another certificate, or give up.
                return LATER if failed.reaction in (Reaction.RETRY, Reaction.RENEW) else None
            return None if failed.status is grpc.StatusCode.UNIMPLEMENTED else AGAIN
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            return AGAIN
        finally:
            call.cancel()
        return None
