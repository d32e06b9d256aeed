"""Servers that are started again, and connections that end at one of their ends only."""

import asyncio
import contextlib
import socket
import struct
from math import inf

import pytest
from tests.ports import free_port
from tests.wire.kit import Run, all_worked, until
from tests.wire.relay import FAR, NEAR

from varangian.aggregators import Mean
from varangian.protos.contract import Terms
from varangian.protos.network import grpc_options
from varangian.protos.refusals import Refusal
from varangian.server.limits.limits import Limits
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.transport import grpc_server
from varangian.server.transport.refusals import Refusals
from varangian.worker.transport import channel
from varangian.worker.transport.payloads import data_connection
from varangian.worker.transport.results import Finished

FORGETFUL = 8.0
"""Seconds after which a router may forget a connection that is silent."""


async def test_workers_wait_for_a_server_that_is_started_again_and_join_its_run():
    port = free_port()
    first, second = Run(rounds=1000, returns=True, run_id="run-1"), Run(rounds=2, run_id="run-2")
    async with first.served(port):
        workers = asyncio.create_task(all_worked(first, f"{NEAR}:{port}"))
        while len(first.records) < 2:
            await asyncio.sleep(0.01)
        first.stop.set()
        assert await first.ended == "stopped on request"
    assert not workers.done()
    async with second.served(port):
        assert set(await workers) == {"all 2 rounds are done"}
    assert [record.missing for record in second.records] == [(), ()]


async def test_a_push_to_a_server_that_stops_waits_for_the_next_one(monkeypatch):
    port = free_port()
    first = Run(rounds=1000, returns=True)
    second = Run(rounds=1000, terms=Terms(epoch=1), limits=Limits(idle=20.0, grace=0.05))
    refused, counted = asyncio.Event(), Refusals.answer

    async def noted(self, call, who, error, round):
        if error.refusal is Refusal.STOPPING:
            refused.set()
        await counted(self, call, who, error, round)

    async def until_refused(*given):
        reason = await Coordinator.run(first.coordinator, *given)
        await refused.wait()
        return reason

    monkeypatch.setattr(Refusals, "answer", noted)
    monkeypatch.setattr(first.coordinator, "run", until_refused)
    async with contextlib.AsyncExitStack() as stack:
        async with first.served(port) as address:
            client = await stack.enter_async_context(first.client(address, "w00"))
            await client.join()
            vector = (await client.pull(-1)).parameters / 2
            first.stop.set()
            await until(lambda: first.coordinator.model.finished)
            push = asyncio.create_task(client.push(0, vector))
            assert await first.ended == "stopped on request"
        assert not push.done()
        async with second.served(port):
            receipt = await push
            assert (receipt.counted, receipt.code) == (False, "RUN")
            assert (await client.pull(-1)).round == 0


async def test_a_server_that_ends_its_run_before_its_last_round_ends_its_workers():
    run = Run(rounds=1000)
    async with run.served() as address:
        workers = asyncio.create_task(all_worked(run, address))
        while not run.records:
            await asyncio.sleep(0.01)
        run.stop.set()
        assert set(await workers) == {"stopped on request"}


class OneSided:
    """Passes everything on; after so many bytes it resets the near end once; the far end hears nothing."""

    def __init__(self, target, after):
        self.target, self.after = target.rpartition(":")[::2], after
        self.moved, self.resets = 0, 0

    @contextlib.asynccontextmanager
    async def laid(self):
        """At FAR, with the port of the target."""
        async with contextlib.AsyncExitStack() as stack:
            self._stack, self._tasks = stack, set()
            server = await asyncio.start_server(self._relay, FAR, int(self.target[1]))
            try:
                yield f"{FAR}:{self.target[1]}"
            finally:
                server.close()
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        down = asyncio.create_task(self._copied(far_reader, writer))
        try:
            with contextlib.suppress(OSError):
                await self._copied(reader, far_writer, writer)
        finally:
            down.cancel()
            await asyncio.gather(down, return_exceptions=True)
            far_writer.close()
            writer.close()

    async def _copied(self, reader, writer, near=None):
        while data := await reader.read(1 << 14):
            writer.write(data)
            await writer.drain()
            self.moved += len(data) if near else 0
            if near and self.moved >= self.after and not self.resets:
                self.resets += 1
                end = near.get_extra_info("socket")
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                near.transport.abort()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                return


@pytest.mark.parametrize("way", ["chunks", "lane"])
async def test_a_push_that_breaks_at_the_worker_only_begins_anew_at_once(way, monkeypatch):
    """No limit of either end plays a part: all of them are longer than this test may be."""
    limits = Limits(idle=1000.0, grace=0.05, restart=0.0)
    run = Run(rounds=1, limits=limits, f=0, rule=Mean(), names=("w00",), returns=True)
    monkeypatch.setattr(run, "data_port", None if way == "chunks" else 0)
    async with run.placed() as place, contextlib.AsyncExitStack() as stack:
        calls = OneSided(place.address, inf if way == "lane" else 400_000)
        address = await stack.enter_async_context(calls.laid())
        broken = calls
        if way == "lane":
            broken = OneSided(f"{NEAR}:{place.lane}", 400_000)
            await stack.enter_async_context(broken.laid())
        async with run.client(address, "w00", idle=1000.0) as client:
            await client.join()
            pulled = await client.pull(-1)
            assert (await client.push(0, pulled.parameters / 2)).counted
        assert broken.resets == 1
        await run.ended


async def test_a_worker_that_is_restarted_while_the_run_ends_hears_of_the_end():
    run = Run(rounds=1, names=("w00", "w01"), f=0, quorum=1, rule=Mean(), deadline=0.1, returns=True)
    async with run.served() as address:
        async with run.client(address, "w01") as killed:
            await killed.join()
            await killed.pull(-1)
        async with run.client(address, "w00") as other:
            await other.join()
            pulled = await other.pull(-1)
            assert (await other.push(0, pulled.parameters)).counted
            assert await other.pull(0) == Finished("all 1 rounds are done")
        await until(lambda: run.sessions.connected == frozenset())
        assert not run.ended.done()
        async with run.client(address, "w01") as again:
            await again.join()
            assert await again.pull(-1) == Finished("all 1 rounds are done")
        await run.ended


def test_silent_connections_are_left_or_kept_alive_before_routers_forget_them():
    options = dict(grpc_options.KEEPALIVE)
    assert options["grpc.keepalive_time_ms"] < FORGETFUL * 1000
    assert dict(grpc_server.options(3))["grpc.http2.min_recv_ping_interval_without_data_ms"] <= (
        options["grpc.keepalive_time_ms"] / 2
    )
    assert data_connection.USED < FORGETFUL


def test_a_ping_is_waited_for_no_longer_than_a_connection_may_be_silent():
    # A machine or a proxy that is stopped may still acknowledge what it does not read: then only the
    # answer to a ping is missing, for which gRPC waits a minute unless it is told otherwise.
    for end in (grpc_server.options(3), channel.OPTIONS):
        options = dict(end)
        assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]
