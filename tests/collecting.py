"""Memory without the garbage collector: whatever is in a circle of references stays."""

import asyncio
import contextlib
import gc
import threading
import weakref

import torch
from tests.extent import patience

OURS = "varangian-"
"""What the names of the product's threads begin with."""


@contextlib.contextmanager
def uncollected():
    """Leave memory to the counting of references in this context."""
    gc.disable()
    gc.unfreeze()  # what a test before this one has frozen would be found once a server has unfrozen it
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def joined():
    """Wait at the end of this context for the product's threads that were begun in it.

    A thread that has handed over its last result still has what it worked on, until it runs once more.
    """
    before = threading.enumerate()
    yield
    for thread in threading.enumerate():
        if thread not in before and thread.name.startswith(OURS):
            thread.join(patience(20))
            assert not thread.is_alive(), f"{thread.name} should have ended"


@contextlib.asynccontextmanager
async def ended():
    """Wait at the end of this context for the tasks and the threads that were begun in it.

    gRPC ends calls some turns of the loop after their server has stopped. Afterwards the loop has no
    threads of its own, and gets no others.
    """
    before = asyncio.all_tasks()
    with joined():
        yield
        if begun := asyncio.all_tasks() - before:
            _, late = await asyncio.wait(begun, timeout=patience(20))
            assert not late, "these should have ended"
            del begun, late, _
        await asyncio.sleep(0)  # for the loop to forget them
        await asyncio.get_running_loop().shutdown_default_executor()


def existing(*kinds):
    """The objects of these types that there are."""
    # Not by isinstance: that asks some objects of libraries for their class, which warn then.
    return [found for found in gc.get_objects() if issubclass(type(found), kinds)]


def vectors(d):
    """The tensors with at least so many numbers."""
    return [found for found in existing(torch.Tensor) if found.numel() >= d]


def remembered(objects):
    """References to objects, that do not keep them."""
    return [weakref.ref(one) for one in objects]


def without(objects, earlier):
    """Those objects that are not among the remembered ones, some of which may have gone meanwhile."""
    there = {id(one()) for one in earlier}
    return [one for one in objects if id(one) not in there]
