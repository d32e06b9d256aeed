"""Storms of calls, connections and half-sent messages at a server with honest workers."""

import asyncio
import contextlib
import socket
import struct
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from tests.extent import patience
from tests.wire.kit import NAMES, Run, all_worked, until

from varangian.protos import metadata_keys, ps_pb2
from varangian.protos.layout import Layout
from varangian.protos.messages import MESSAGE_LIMIT
from varangian.protos.network.descriptors import connections
from varangian.protos.network.dial import open_aio_channel
from varangian.protos.network.grpc_options import LOOKAHEAD, SMALL_MODEL_LOOKAHEAD
from varangian.server.limits.limits import Limits
from varangian.server.transport.grpc_server import STREAMS

STATUS = "/varangian.v1.ParameterServer/Status"
LOCAL = (("grpc.use_local_subchannel_pool", 1),)
SMALL = Layout((("weight", (40,)),))
INLINE, LARGE = Layout((("weight", (16_000,)),)), Layout((("weight", (17_000,)),))
"""The payload of one is as large as any that comes in one message; that of the other is larger."""


async def storming(address, connections_, count):
    """Status calls in a loop, as many on each connection as the server allows."""

    async def caller(channel):
        while True:
            try:
                await channel.unary_unary(STATUS)(b"", timeout=patience(20))
                count["answered"] = count.get("answered", 0) + 1
            except grpc.aio.AioRpcError as error:
                code = dict(error.trailing_metadata() or ()).get(metadata_keys.CODE, error.code().name)
                count[code] = count.get(code, 0) + 1
                await asyncio.sleep(0.02)

    channels = [
        open_aio_channel(address, None, (("grpc.use_local_subchannel_pool", 1),))
        for _ in range(connections_)
    ]
    callers = [asyncio.create_task(caller(channel)) for channel in channels for _ in range(STREAMS)]
    try:
        await asyncio.Event().wait()
    finally:
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        for channel in channels:
            await channel.close()


async def test_in_a_storm_of_calls_every_honest_worker_finishes():
    run, count = Run(rounds=15, layout=SMALL, limits=Limits(idle=20.0, grace=20.0)), {}
    async with run.served() as address:
        storm = asyncio.create_task(storming(address, connections(len(NAMES)), count))
        while sum(count.values()) < 50:  # it rages before the first of them comes
            await asyncio.sleep(0.01)
        try:
            reasons = await all_worked(run, address)
        finally:
            storm.cancel()
            await asyncio.gather(storm, return_exceptions=True)
    assert len(reasons) == len(NAMES)
    assert all(record.dropped == {} for record in run.records)
    assert count["answered"] > 0


async def read_to_the_end(reader):
    while await reader.read(1 << 16):
        pass


async def test_connections_beyond_the_limit_are_closed_and_others_work_on():
    run, silent, reading = Run(rounds=3, layout=SMALL), [], []
    most = connections(len(NAMES))
    async with run.served() as address:
        host, _, port = address.rpartition(":")
        clients = [run.client(address, name) for name in NAMES]
        for client in clients:
            await client.join()
        try:
            silent += [await asyncio.open_connection(host, int(port)) for _ in range(2 * most)]
            reading = [asyncio.create_task(read_to_the_end(reader)) for reader, _ in silent]
            # And few enough of those who stay are strangers, but that takes seconds.
            await until(lambda: sum(task.done() for task in reading) >= most)
            pulled = [await client.pull(-1) for client in clients]
            for client, found in zip(clients, pulled, strict=True):
                assert (await client.push(found.round, found.parameters)).counted
        finally:
            for _, writer in silent:
                writer.close()
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            for client in clients:
                await client.close()
            run.stop.set()


class Half:
    """Messages that are never complete, on one HTTP/2 connection: what the server lets in of them."""

    def __init__(self, address, identity):
        http2 = pytest.importorskip("tests.hostile.http2")
        host, _, port = address.rpartition(":")

        def dial(_):
            line = socket.create_connection((host, int(port)), patience(10))
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return line

        self.line = http2.Line(SimpleNamespace(dial=dial, address=address))
        self.hung_up = http2.HungUp
        self.identity = identity
        self.open = {}
        """Bytes that are still to be sent of each stream."""
        self.sent = 0
        while not self.line.events:  # the settings of the server, with its windows
            self.line.listen(1)

    def begin(self, method):
        stream = self.line.call(method, self.identity)
        self.open[stream] = struct.pack(">BI", 0, MESSAGE_LIMIT) + bytes(MESSAGE_LIMIT - 1)

    def push_on(self, turns=60):
        """Send whatever there is room for, until the server has let nothing more in for a while."""
        quiet = 0
        while quiet < turns and self.open:
            before = self.sent
            for stream, data in list(self.open.items()):
                room = min(
                    self.line.http.local_flow_control_window(stream), self.line.http.max_outbound_frame_size
                )
                if self.line.ended(stream):
                    del self.open[stream]
                elif room > 0 and data:
                    self.line.http.send_data(stream, data[:room])
                    self.line.flush()
                    self.sent += len(data[:room])
                    self.open[stream] = data[room:]
            with contextlib.suppress(self.hung_up):
                self.line.listen(0.01)
            quiet = quiet + 1 if self.sent == before else 0

    def refused(self):
        """Codes of the calls that have ended."""
        found = (dict(event.headers) for event in self.line.events if hasattr(event, "headers"))
        return [found[metadata_keys.CODE] for found in found if metadata_keys.CODE in found]


@pytest.mark.parametrize(
    ("layout", "ahead"),
    [
        (SMALL, LOOKAHEAD),
        pytest.param(INLINE, SMALL_MODEL_LOOKAHEAD, marks=pytest.mark.exhaustive),
        pytest.param(LARGE, LOOKAHEAD, marks=pytest.mark.exhaustive),
    ],
)
async def test_of_half_sent_messages_little_is_let_in_and_of_strangers_almost_nothing(layout, ahead):
    run = Run(rounds=1, layout=layout, limits=Limits(idle=patience(5.0), grace=0.1))
    async with run.served() as address:
        stranger = await asyncio.to_thread(Half, address, ())
        for method in ("Join", "Pull", "Push", "Attend", "Decline", "Status", "Join", "Pull"):
            await asyncio.to_thread(stranger.begin, method)
        await asyncio.to_thread(stranger.push_on)
        assert stranger.sent <= STREAMS * 2 * ahead
        stranger.line.close()
        async with run.client(address, NAMES[0]) as client:
            await client.join()
            worker = await asyncio.to_thread(Half, address, client._identity)
            for method in ("Pull", "Pull", "Attend"):
                await asyncio.to_thread(worker.begin, method)
            await asyncio.to_thread(worker.push_on)
            # One of them is read as a whole; of the others there is what is sent ahead.
            assert worker.sent <= MESSAGE_LIMIT + STREAMS * 2 * ahead
            worker.line.close()
            run.stop.set()


async def test_who_calls_too_often_is_refused_by_code_and_nobody_else_is():
    run = Run(rounds=1, layout=SMALL, limits=Limits(calls=0.001, calls_at_once=5, grace=0.1))
    async with run.served() as address:
        async with open_aio_channel(address) as channel:
            call = channel.unary_unary(STATUS)
            results = await asyncio.gather(*(call(b"") for _ in range(8)), return_exceptions=True)
            refused = [error for error in results if isinstance(error, grpc.aio.AioRpcError)]
            assert {dict(error.trailing_metadata())[metadata_keys.CODE] for error in refused} == {"CALLS"}
            assert 1 <= len(refused) < 4
            reply = ps_pb2.StatusReply.FromString(next(r for r in results if isinstance(r, bytes)))
            assert not any(name in reply.sentence for name in NAMES)
            async with run.client(address, NAMES[0]) as client:
                await client.join()
        run.stop.set()
