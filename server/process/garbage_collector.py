"""Keeps Python's collector of garbage from holding up a server."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def frozen_garbage_collector() -> Generator[None, None, None]:
    """For as long as a server answers, what is there now is not searched for garbage.

    The libraries alone are 180 000 objects. Now and then the collector looks at all of them, for 150 ms in
    which no other thread runs and nobody is answered. What is made from now on is still looked at.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
