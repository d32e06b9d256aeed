"""What workers hear from a server that stops in the middle of its run: the end, or to wait for another."""

import asyncio
import contextlib

import grpc
import pytest
from tests.server.transport.test_service import BIG, refusal, world
from tests.server.transport.test_service_data_channel import beside

from varangian.protos.refusals import Refusal
from varangian.server.rounds.coordinator import Coordinator


@contextlib.asynccontextmanager
async def stopped(monkeypatch, **options):
    """A run that was stopped, at a server that still answers; a worker of it, and an upload of another."""
    gone, run = asyncio.Event(), Coordinator.run

    async def held(*given):
        reason = await run(*given)
        await gone.wait()
        return reason

    monkeypatch.setattr(Coordinator, "run", held)
    async with world(BIG, **options) as this, beside(this) as worker, beside(this, "w01") as other:
        upload, ticket = await other.pushing()
        await other.send(ticket)
        this.stop.set()
        try:
            while not this.coordinator.model.finished:
                await asyncio.sleep(0.005)
            with contextlib.suppress(ConnectionError):  # the server may have noticed by itself
                await other.send(b"the beginning of a payload")
            yield worker, upload
        finally:
            gone.set()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"returns": True}, Refusal.STOPPING),
        ({"returns": True, "for_good": lambda: "enough"}, Refusal.FINISHED),
        ({"returns": False}, Refusal.FINISHED),
    ],
    ids=["stops", "ends for good", "ends"],
)
async def test_pushes_and_declined_rounds_hear_what_pulls_hear(options, expected, monkeypatch):
    status = grpc.StatusCode[expected.status]
    async with stopped(monkeypatch, **options) as (worker, upload):
        push, ready = await worker.pushing()
        assert ready is None
        async with refusal(status, expected.code):
            await push.end()
        async with refusal(status, expected.code):
            await upload.end()
        async with refusal(status, expected.code):
            await worker.raw.decline(0, "nothing to send")
        if expected is Refusal.STOPPING:
            async with refusal(status, expected.code):
                await worker.raw.pull()
        else:
            (answer,) = await worker.raw.pull()
            assert answer.finished.reason == options.get("for_good", lambda: "stopped on request")()
