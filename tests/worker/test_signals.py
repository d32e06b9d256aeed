"""Signals end a process of workers for certain."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from varangian.worker.signals import SignalHandling


def test_a_cancellation_that_is_swallowed_is_repeated():
    async def stubborn():
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    async def main():
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        with ending.of(lambda: [task]):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait([task])
        return task.cancelled()

    left = []
    with SignalHandling(left.append, again=0.01) as ending:
        assert asyncio.run(main())
    assert (ending.code, left) == (128 + signal.SIGTERM, [])


@pytest.mark.parametrize("signals", [1, 2])
def test_what_cannot_be_cancelled_ends_all_the_same(signals):
    over, left = threading.Event(), []

    def leave(code):
        left.append(code)
        over.set()

    async def main():
        with ending.of(tuple):
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0.01)
            await asyncio.to_thread(over.wait)

    with SignalHandling(leave, grace=0.01 if signals == 1 else 3600) as ending:
        asyncio.run(main())
    assert left == [128 + signal.SIGINT]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_has_the_exit_code_of_its_signal(number, code):
    script = (
        "import os, sys, types; from varangian.cli import main\n"
        "sys.modules['varangian.cli.commands.health'] = module = types.ModuleType('health')\n"
        f"module.command = lambda args: os.kill(os.getpid(), {int(number)})\n"
        "sys.exit(main.main(['health', '--server', 'a:1']))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == code
