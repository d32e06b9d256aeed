"""Workers of a run that invites: those who do as they should, and one that does what a test says."""

import asyncio
import contextlib
import secrets
import threading
from functools import partial

import grpc.aio
import torch
from tests.hostile.siege import settled
from tests.uploading import Upload

from varangian.protos import ps_pb2
from varangian.protos.metadata_keys import CODE, READY, SESSION
from varangian.protos.network.dial import open_aio_channel, open_channel
from varangian.protos.payloads.chunks import encode_chunk
from varangian.protos.payloads.encoding import encode_vector
from varangian.worker.loop import work
from varangian.worker.transport.channel import SERVICE, Stub
from varangian.worker.transport.client import Client

THINKING = 0.02
"""Seconds: a machine with two cores has other things to do."""


class Pushing(Client):
    """A client that says when its push is over."""

    async def push(self, round, vector):
        try:
            return await super().push(round, vector)
        finally:
            self.pushing.discard(self.name)


class Crew:
    """Honest workers in a thread of their own, at it until they are let go or the run is over."""

    def __init__(self, siege, names):
        self.siege, self.names = siege, names
        self.ended = {}
        self.pushing = set()
        """Those whose vector is on its way."""
        self._pauses, self._stop = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()), daemon=True)
        self._thread.start()

    async def _work(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        jobs = [asyncio.create_task(self._one(name)) for name in self.names]
        await asyncio.wait([asyncio.create_task(self._stop.wait()), *jobs], return_when="FIRST_COMPLETED")
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def _one(self, name):
        try:
            async with self.siege.client(name, Pushing) as client:
                client.pushing = self.pushing
                self.ended[name] = await work(client, partial(self._compute, name))
        except Exception as error:
            self.ended[name] = error
            raise

    async def _compute(self, name, round, parameters):
        while True:
            await asyncio.sleep(THINKING)
            self.pushing.add(name)  # first: whoever pauses them looks here after that
            if not self._pauses.is_set():
                return parameters / 2 + 1
            self.pushing.discard(name)

    @contextlib.contextmanager
    def paused(self):
        """Nobody hands anything over, so an open round stays open until its deadline."""
        self._pauses.set()
        try:
            yield
        finally:
            self._pauses.clear()

    def goes_on(self, rounds=5):
        """Wait until so many more rounds had an update; what their records say."""
        first = len(self.siege.rounds)

        def updates():
            return [record for record in self.siege.rounds[first:] if record["skipped"] is None]

        found = settled(updates, lambda found: len(found) >= rounds or self.ended)
        assert not self.ended, self.ended
        assert len(found) >= rounds, (found, self.siege.log.read_text()[-2000:])
        return found

    def close(self):
        settled(lambda: self._stop, bool)
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


class Renegade(Client):
    """A worker of the run, with a token of its own, that keeps to no order."""

    async def __aenter__(self):
        self.channel, self.streams = open_aio_channel(self.address), open_channel(self.address)
        self.calls = Stub(self.channel)
        return await super().__aenter__()

    async def __aexit__(self, *error):
        await self.channel.close()
        self.streams.close()
        await super().__aexit__(*error)

    def another(self):
        """From now on this is a process that nobody has heard of."""
        fresh = (SESSION, secrets.token_hex(16))
        self._identity = (*(pair for pair in self._identity if pair[0] != SESSION), fresh)

    def asks(self, after=-1):
        """A pull that nobody has to listen to."""
        request = ps_pb2.PullRequest(run_id=self._contract.run_id, after=after)
        return self.calls.pull(request.SerializeToString(), metadata=self._identity)

    async def manifest(self, round, digest=bytes(16)):
        """A push that begins; whether the server is ready for what comes."""
        manifest = ps_pb2.PushRequest(manifest=self._contract.manifest(round, digest))
        method = self.streams.stream_unary(f"/{SERVICE}/Push")
        call = Upload(method, self._identity, manifest.SerializeToString())
        return call, READY in await call.headers()

    async def half(self, round):
        """Half of a vector, and no more for now."""
        call, ready = await self.manifest(round)
        if ready:
            half = self._contract.layout.numel * 2
            call.write(encode_chunk(0, encode_vector(torch.ones(half // 4))))
        return call, ready


async def code(call):
    """What the server has to say of a call when it ends it; nothing of a pull that may be asked again."""
    if isinstance(call, Upload):
        return (await call.trailers()).get(CODE, "")
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    return dict(await call.trailing_metadata() or ()).get(CODE, "")
