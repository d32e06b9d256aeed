"""The garbage collector and the heartbeat of a server's process."""

import asyncio
import gc

from varangian.server.process import frozen_garbage_collector
from varangian.telemetry.heartbeat import touch_heartbeat


class Ring:
    """Only the collector can free it."""

    freed = 0

    def __init__(self):
        self.ring = self

    def __del__(self):
        Ring.freed += 1


def test_what_was_there_before_is_looked_at_again_afterwards_and_what_comes_meanwhile_at_once():
    gc.collect()
    Ring.freed = 0
    Ring()
    with frozen_garbage_collector():
        gc.collect()
        assert Ring.freed == 0
        Ring()
        gc.collect()
        assert Ring.freed == 1
    gc.collect()
    assert Ring.freed == 2


async def test_the_file_is_touched_again_and_again_and_gone_at_the_end(tmp_path):
    path = tmp_path / "serving"
    async with touch_heartbeat(path, period=0.01):
        while not path.exists():
            await asyncio.sleep(0.01)
        path.unlink()  # whatever happens to it
        while not path.exists():
            await asyncio.sleep(0.01)
    assert not path.exists()


async def test_a_file_that_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, caplog):
    async with touch_heartbeat(tmp_path / "none" / "serving", period=0.001):
        while not caplog.messages:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
    assert len(caplog.messages) == 1
