"""A push bit by bit, by threads: grpc.aio loses the answer to a call that ends while one writes to it."""

import asyncio
import contextlib
from queue import SimpleQueue


class Upload:
    """A call with a stream of requests that goes on until its end is sent, or the server ends it.

    Args:
        method: a `stream_unary` of a channel that is not of grpc.aio, in bytes.
        parts: the first of what is sent.
        message: makes bytes of a part.
    """

    def __init__(self, method, metadata, *parts, message=bytes):
        self._message, self._parts = message, SimpleQueue()
        self.write(*parts)
        self._call = method.future(iter(self._parts.get, None), metadata=metadata)
        loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._call.add_done_callback(lambda _: self._ended(loop))

    def write(self, *parts):
        """Send these after all others; nothing happens if the call has ended."""
        for part in parts:
            self._parts.put(self._message(part))

    async def headers(self):
        """What the answer begins with; nothing if there is only an end."""
        return dict(await asyncio.to_thread(self._call.initial_metadata))

    async def trailers(self):
        """What the server says at its end."""
        await self._over.wait()
        return dict(self._call.trailing_metadata())

    async def end(self):
        """How the server ends it, without another part of it: a reply in bytes, or an error."""
        try:
            await self._over.wait()
        except asyncio.CancelledError:
            self._call.cancel()
            raise
        return self._call.result()

    async def reply(self):
        """The answer to all of it."""
        self._parts.put(None)
        return await self.end()

    def done(self):
        return self._call.done()

    def cancel(self):
        self._call.cancel()

    def _ended(self, loop):
        self._parts.put(None)  # for the thread that reads them
        with contextlib.suppress(RuntimeError):  # a loop that is closed awaits nothing
            loop.call_soon_threadsafe(self._over.set)
