"""Tests that are coroutines."""

import asyncio
import functools

from tests.extent import patience


def scenario(test):
    """Run a coroutine as a test, but not for ever."""

    @functools.wraps(test)
    def run(*given, **fixtures):
        return asyncio.run(asyncio.wait_for(test(*given, **fixtures), patience(100)))

    return run
