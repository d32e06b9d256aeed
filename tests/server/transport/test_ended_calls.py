"""Calls that the server ends while its answer begins: the other end hears why at once."""

import asyncio
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from tests.server.transport.test_service import BIG, refusal, usable, world

from varangian.protos.errors import Refused
from varangian.protos.network.dial import open_aio_channel
from varangian.protos.refusals import Refusal
from varangian.server.limits.concurrency import NewestCalls
from varangian.server.transport import calls, service
from varangian.server.transport.calls import Call
from varangian.server.transport.grpc_server import CallHandlers
from varangian.server.transport.refusals import Refusals


class AsItBegins:
    """The context of a call: `first` is called once gRPC was given the beginning of the answer.

    gRPC takes that in another thread, so it is not done with it by then.
    """

    def __init__(self, context, first):
        self._context = context
        self._first = first

    def __getattr__(self, name):
        return getattr(self._context, name)

    async def send_initial_metadata(self, metadata):
        self._begin()
        await self._context.send_initial_metadata(metadata)

    async def write(self, message):
        self._begin()
        await self._context.write(message)

    def _begin(self):
        first, self._first = self._first, lambda: None
        asyncio.get_running_loop().call_soon(first)


async def replace(newest, worker):
    async with newest.call(worker):
        pass


@pytest.mark.parametrize("begins", ["with headers", "with a message"])
async def test_a_call_that_is_replaced_as_its_answer_begins_is_told_so(begins):
    newest, replaced = NewestCalls(), []

    def first():
        replaced.append(asyncio.ensure_future(replace(newest, "w00")))

    async def answer(_, context):
        call = Call(AsItBegins(context, first))
        try:
            async with newest.call("w00"):
                if begins == "with headers":
                    await call.send_initial_metadata((("key", "value"),))
                else:
                    await call.write(b"message")
                await asyncio.Event().wait()
        except Refused as refused:
            await Refusals().answer(call, "w00", refused, 0)

    server, handlers = grpc.aio.server(), CallHandlers()
    handlers.add("Any", {"Call": grpc.stream_stream_rpc_method_handler(answer)})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_aio_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_stream("/Any/Call")(b"")
            async with refusal(grpc.StatusCode[Refusal.REPLACED.status], Refusal.REPLACED.code):
                while await call.read() is not grpc.aio.EOF:
                    pass
            (task,) = replaced
            await task
    finally:
        await server.stop(None)


async def test_a_call_whose_answer_cannot_begin_ends_all_the_same(monkeypatch):
    monkeypatch.setattr(calls, "BEGINNING", 0.01)
    aborted = []

    class Stuck(SimpleNamespace):
        async def send_initial_metadata(self, metadata):
            await asyncio.Event().wait()

        async def abort(self, *given):
            aborted.append(given)

    context = Stuck(
        read=None,
        write=None,
        peer=lambda: "ipv4:127.0.0.1:1",
        invocation_metadata=lambda: (),
        auth_context=dict,
    )
    call = Call(context)
    begun = asyncio.ensure_future(call.send_initial_metadata(()))
    await asyncio.sleep(0)
    begun.cancel()
    await asyncio.wait({begun})
    await call.abort(grpc.StatusCode.ABORTED, "ended", ())
    assert aborted == [(grpc.StatusCode.ABORTED, "ended", ())]


@pytest.mark.parametrize("lane", [(), (("varangian-lane", "1"),)], ids=["chunks", "beside"])
async def test_a_push_that_is_replaced_as_it_is_let_in_is_told_so(lane, monkeypatch):
    found, tasks = [], []

    class Noted(NewestCalls):
        def __init__(self):
            super().__init__()
            found.append(self)

    def first():
        tasks.extend(asyncio.ensure_future(replace(newest, "w00")) for newest in found)

    monkeypatch.setattr(service, "NewestCalls", Noted)
    async with world(BIG) as this, this.raw() as raw:
        with monkeypatch.context() as patched:
            patched.setattr(service, "Call", lambda context: Call(AsItBegins(context, first)))
            call = raw.begin(raw.contract.manifest(0, b""), metadata=lane)
            async with refusal(grpc.StatusCode[Refusal.REPLACED.status], Refusal.REPLACED.code):
                await call.end()
        await asyncio.gather(*tasks)
        assert this.coordinator.status().present == ()
        await usable(this)
