"""Results of work in threads."""

import asyncio
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from tests.collecting import uncollected

from varangian.protos.network.thread_results import result_of


class Large:
    """A result that takes much memory."""


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def test_a_result_is_freed_as_soon_as_nobody_needs_it(thread):
    begun = threading.Event()

    def work():
        begun.wait()
        return Large()

    asyncio.get_running_loop().call_soon(begun.set)
    with uncollected():
        result = await result_of(thread.submit(work))
        gone = weakref.ref(result)
        del result
        thread.submit(int).result()  # the thread has let go of it
        assert gone() is None


async def test_an_error_of_the_work_is_raised_here(thread):
    with pytest.raises(ZeroDivisionError):
        await result_of(thread.submit(lambda: 1 / 0))


async def test_whoever_is_cancelled_cancels_work_that_has_not_begun():
    work = Future()
    waiting = asyncio.create_task(result_of(work))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.cancelled()


async def test_work_that_is_done_needs_no_turn_of_the_loop():
    work = Future()
    work.set_result(3)
    with pytest.raises(StopIteration) as end:
        result_of(work).send(None)
    assert end.value.value == 3
