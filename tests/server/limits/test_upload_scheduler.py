import asyncio

import pytest
from tests.extent import patience

from varangian.server.limits.upload_scheduler import UploadScheduler


def scenario(test):
    def run():
        asyncio.run(asyncio.wait_for(test(), patience(100)))

    run.__name__ = test.__name__
    return run


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


@scenario
async def test_no_more_than_its_seats_are_taken_and_the_longest_waiting_comes_next():
    gate, diary = UploadScheduler(seats=2, turn=60.0, share=1 << 20), []
    leave = [asyncio.Event() for _ in range(5)]

    async def visit(i):
        async with gate.seat():
            diary.append(i)
            await leave[i].wait()

    visits = [asyncio.create_task(visit(i)) for i in range(5)]
    await settle()
    assert diary == [0, 1]
    leave[1].set()
    await settle()
    assert diary == [0, 1, 2]
    for event in leave:
        event.set()
    await asyncio.gather(*visits)
    assert diary == [0, 1, 2, 3, 4]


@scenario
async def test_who_sits_for_longer_than_a_turn_gives_way_and_queues_again():
    gate, diary = UploadScheduler(seats=1, turn=0.01, share=1 << 20), []

    async def busy(name, messages):
        async with gate.seat() as seat:
            for _ in range(messages):
                diary.append(name)
                await asyncio.sleep(0.012)
                await seat.heard(1)
                await seat.listen()

    await asyncio.gather(busy("a", 3), busy("b", 3))
    assert diary == ["a", "b", "a", "b", "a", "b"]


@scenario
async def test_who_listens_in_vain_loses_the_seat_without_doing_anything():
    gate = UploadScheduler(seats=1, turn=60.0, share=1 << 20)
    async with gate.seat() as stalled:
        await stalled.listen()
        async with gate.seat() as other:
            assert gate.waiting == 0
            back = asyncio.create_task(stalled.heard(1))
            await settle()
            assert gate.waiting == 1, "who hears something at last queues again"
            await other.listen()
            await back


@scenario
async def test_who_is_busy_keeps_the_seat():
    gate = UploadScheduler(seats=1, turn=60.0, share=1 << 20)
    async with gate.seat() as busy:
        await busy.listen()
        await busy.heard(1)
        waiting = asyncio.create_task(hold(gate))
        await asyncio.sleep(0.12)
        assert gate.waiting == 1
        waiting.cancel()


@scenario
async def test_a_turn_is_so_many_bytes_too_and_rows_grow_together():
    gate, rows = UploadScheduler(seats=2, turn=60.0, share=4), dict.fromkeys("abcde", 0)

    async def upload(name):
        async with gate.seat() as seat:
            for _ in range(40):
                await seat.listen()
                await asyncio.sleep(0)
                await seat.heard(1)
                rows[name] += 1
                assert max(rows.values()) - min(rows.values()) <= 8

    await asyncio.gather(*map(upload, rows))
    assert set(rows.values()) == {40}


@scenario
async def test_nobody_gives_way_to_nobody():
    gate = UploadScheduler(seats=1, turn=0.005, share=1 << 20)
    async with gate.seat() as seat:
        await asyncio.sleep(0.03)
        assert gate.waiting == 0
        await asyncio.wait_for(seat.listen(), patience(20))
    async with asyncio.timeout(patience(20)), gate.seat():
        pass


@pytest.mark.parametrize("seated", [True, False])
def test_a_seat_is_free_again_however_its_upload_ends(seated):
    @scenario
    async def story():
        gate = UploadScheduler(seats=1, turn=60.0, share=1 << 20)
        async with gate.seat():
            waiting = asyncio.create_task(hold(gate))
            await settle()
            assert gate.waiting == 1
            if not seated:
                waiting.cancel()
                await settle()
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert gate.waiting == 0
        async with asyncio.timeout(patience(20)), gate.seat():
            pass

    story()


async def hold(gate):
    async with gate.seat():
        await asyncio.sleep(60)
