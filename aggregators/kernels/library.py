"""The compiled kernels: where they are, which version of them this processor runs, how each is called."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from ctypes import c_float, c_int64, c_void_p
from functools import cache

ABI = 3

VERBS: dict[str, tuple[type, ...]] = {
    "gram": (c_void_p, c_void_p, c_int64, c_int64, c_void_p),
    "gram_exact": (c_void_p, c_void_p, c_int64, c_int64, c_void_p),
    "combine": (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p),
    "columns": (
        *(c_void_p, c_int64, c_int64, c_void_p, c_int64),
        *(c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p),
    ),
    "majority": (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_float, c_void_p),
    **{
        f"landed_{wire}_{row}": (c_void_p, c_int64, c_void_p)
        for wire in ("float32", "bfloat16")
        for row in ("float32", "bfloat16")
    },
}
"""Arguments of each verb, as the C side declares them."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they were not built."""
    found = importlib.util.find_spec("varangian.aggregators.kernels._native")
    if found is None or found.origin is None:
        return None
    loaded = ctypes.CDLL(found.origin)
    return loaded if loaded.varangian_abi() == ABI else None


@cache
def level() -> int:
    """Which of the compiled versions of every verb this processor can run: the last part of its name."""
    loaded = library()
    return 0 if loaded is None else int(loaded.varangian_level())


@cache
def function(verb: str, version: int) -> Callable[..., int]:
    """The verb, ready to be called; meanwhile other Python threads run."""
    found: Callable[..., int] = getattr(library(), f"varangian_{verb}_v{version}")
    found.argtypes = VERBS[verb]  # type: ignore[attr-defined]
    return found
