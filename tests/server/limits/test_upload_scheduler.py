import asyncio

import pytest
from tests.extent import patience

from varangian.server.limits.upload_scheduler import UploadScheduler


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_its_turns_are_taken_and_the_longest_waiting_comes_next():
    scheduler, diary = UploadScheduler(receiving=2, turn_seconds=60.0, turn_bytes=1 << 20), []
    leave = [asyncio.Event() for _ in range(5)]

    async def visit(i):
        async with scheduler.turn():
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


async def test_who_sits_for_longer_than_a_turn_gives_way_and_queues_again():
    scheduler, diary = UploadScheduler(receiving=1, turn_seconds=0.01, turn_bytes=1 << 20), []

    async def busy(name, messages):
        async with scheduler.turn() as turn:
            for _ in range(messages):
                diary.append(name)
                await asyncio.sleep(0.012)
                await turn.after_read(1)
                await turn.before_read()

    await asyncio.gather(busy("a", 3), busy("b", 3))
    assert diary == ["a", "b", "a", "b", "a", "b"]


async def test_who_waits_in_vain_loses_the_turn_without_doing_anything():
    scheduler = UploadScheduler(receiving=1, turn_seconds=60.0, turn_bytes=1 << 20)
    async with scheduler.turn() as stalled:
        await stalled.before_read()
        async with scheduler.turn() as other:
            assert scheduler.waiting == 0
            back = asyncio.create_task(stalled.after_read(1))
            await settle()
            assert scheduler.waiting == 1, "who hears something at last queues again"
            await other.before_read()
            await back


async def test_who_is_busy_keeps_the_turn():
    scheduler = UploadScheduler(receiving=1, turn_seconds=60.0, turn_bytes=1 << 20)
    async with scheduler.turn() as busy:
        await busy.before_read()
        await busy.after_read(1)
        waiting = asyncio.create_task(hold(scheduler))
        await asyncio.sleep(0.12)
        assert scheduler.waiting == 1
        waiting.cancel()


async def test_a_turn_is_so_many_bytes_too_and_rows_grow_together():
    scheduler = UploadScheduler(receiving=2, turn_seconds=60.0, turn_bytes=4)
    rows = dict.fromkeys("abcde", 0)

    async def upload(name):
        async with scheduler.turn() as turn:
            for _ in range(40):
                await turn.before_read()
                await asyncio.sleep(0)
                await turn.after_read(1)
                rows[name] += 1
                assert max(rows.values()) - min(rows.values()) <= 8

    await asyncio.gather(*map(upload, rows))
    assert set(rows.values()) == {40}


async def test_nobody_gives_way_to_nobody():
    scheduler = UploadScheduler(receiving=1, turn_seconds=0.005, turn_bytes=1 << 20)
    async with scheduler.turn() as turn:
        await asyncio.sleep(0.03)
        assert scheduler.waiting == 0
        await asyncio.wait_for(turn.before_read(), patience(20))
    async with asyncio.timeout(patience(20)), scheduler.turn():
        pass


@pytest.mark.parametrize("running", [True, False])
async def test_a_turn_is_free_again_however_its_upload_ends(running):
    scheduler = UploadScheduler(receiving=1, turn_seconds=60.0, turn_bytes=1 << 20)
    async with scheduler.turn():
        waiting = asyncio.create_task(hold(scheduler))
        await settle()
        assert scheduler.waiting == 1
        if not running:
            waiting.cancel()
            await settle()
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert scheduler.waiting == 0
    async with asyncio.timeout(patience(20)), scheduler.turn():
        pass


async def hold(scheduler):
    async with scheduler.turn():
        await asyncio.sleep(60)


async def test_a_turn_that_is_given_as_the_first_in_the_queue_is_cancelled_goes_to_the_next():
    scheduler = UploadScheduler(receiving=1, turn_seconds=60.0, turn_bytes=1 << 20)
    async with scheduler.turn():
        first, second = (asyncio.create_task(hold(scheduler)) for _ in range(2))
        await settle()
        first.cancel()  # it has not run since
    with pytest.raises(asyncio.CancelledError):
        await first
    await settle()
    assert scheduler.waiting == 0
    assert not second.done()
    second.cancel()
