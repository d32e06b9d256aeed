"""Time of the parts of an aggregation, taken only where somebody asks for it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

_parts: ContextVar[dict[str, float] | None] = ContextVar("parts", default=None)


@contextmanager
def time_parts() -> Generator[dict[str, float]]:
    """The seconds of each part that runs in this context and thread; a part that recurs adds up."""
    found: dict[str, float] = {}
    token = _parts.set(found)
    try:
        yield found
    finally:
        _parts.reset(token)


@contextmanager
def part(name: str) -> Generator[None]:
    """A part of an aggregation."""
    found = _parts.get()
    if found is None:
        yield
        return
    began = perf_counter()
    try:
        yield
    finally:
        found[name] = found.get(name, 0.0) + perf_counter() - began
