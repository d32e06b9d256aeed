"""The asynchronous form, and the synchronous one where an event loop runs already, as in a notebook."""

import asyncio

import pytest
import torch
from tests.client.rig import flat_gradient, model, serving

from varangian import AsyncWorker, ClientError, connect_async

X, Y = torch.arange(12.0).reshape(4, 3) / 12, torch.arange(8.0).reshape(4, 2) / 8


def loss_of(module):
    return (module(X) - Y).square().mean()


async def test_the_loop_as_a_coroutine():
    module, sent = model(), []
    with serving(module) as rig:
        async with connect_async(rig.address, module, name="w00", token=rig.token()) as worker:
            assert isinstance(worker, AsyncWorker)
            while await worker.pull():
                loss_of(module).backward()
                sent.append(flat_gradient(module))
                assert (await worker.push()).accepted
            assert worker.reason == "all 3 rounds are done"
        with pytest.raises(ClientError, match="is closed"):
            await worker.pull()
    assert all(torch.equal(rig.rows[round]["w00"], row) for round, row in enumerate(sent))


async def test_a_push_overlaps_and_others_run_meanwhile():
    module, ran = model(), []

    async def other():
        while True:
            ran.append(len(ran))
            await asyncio.sleep(0)

    with serving(module, "w00", "w01") as rig:
        worker = await connect_async(rig.address, module, name="w00", token=rig.token())
        async with worker, connect_async(rig.address, model(), name="w01", token=rig.token("w01")) as last:
            beside = asyncio.create_task(other())
            await worker.pull()
            loss_of(module).backward()
            pushing, sent = worker.push_async(), flat_gradient(module)
            module.zero_grad()
            waiting = asyncio.create_task(worker.pull())
            assert await last.pull()
            assert await last.push(torch.zeros(last.layout.numel))
            assert await waiting
            assert (await pushing).accepted
            await worker.decline("that was all")
            beside.cancel()
    assert torch.equal(rig.rows[0]["w00"], sent)
    assert ran


async def test_a_wait_can_be_cancelled_and_begun_again():
    module = model()
    with serving(module, "w00", "w01") as rig:
        async with (
            connect_async(rig.address, module, name="w00", token=rig.token()) as worker,
            connect_async(rig.address, model(), name="w01", token=rig.token("w01")) as other,
        ):
            zeros = torch.zeros(worker.layout.numel)
            await worker.pull()
            await worker.push(zeros)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(worker.pull(), 0.05)
            assert worker.round == 0
            await other.pull()
            await other.push(zeros)
            assert await worker.pull()
            assert worker.round == 1


async def test_errors_come_when_it_is_awaited():
    connecting = connect_async("nowhere", model())
    with pytest.raises(ClientError, match="HOST:PORT"):
        await connecting
    with pytest.raises(ClientError, match="HOST:PORT"):
        async with connecting:
            pass


async def test_the_synchronous_form_inside_of_an_event_loop():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        assert worker.pull()
        assert worker.push(torch.zeros(worker.layout.numel))
