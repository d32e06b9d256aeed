"""Weak methods: callbacks that do not keep the object alive that they belong to.

An object that gives its own methods to its parts is in a circle of references with them. Circles are freed
by the garbage collector alone, which counts objects and not their bytes: a few large tensors stay in memory
for many rounds, and in a process that carries out several runs those of the runs before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar
from weakref import WeakMethod

P = ParamSpec("P")
T = TypeVar("T")


def weakly(method: Callable[P, T]) -> Callable[P, T | None]:
    """A bound method as a function that does nothing once its object is gone, and then returns None."""
    reference = WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        found = reference()
        return None if found is None else found(*args, **kwargs)

    return call
