"""The compiled kernels: the library, the version for this processor, and its functions.

The environment variable VARANGIAN_KERNELS chooses a version other than the best for this processor: "v1",
"v3" (AVX2), "v4" (AVX-512), or "none" for plain torch. With it one machine gives another one's bits, and
the tests try each version.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
from collections.abc import Callable
from ctypes import c_float, c_int64, c_void_p
from functools import cache

log = logging.getLogger(__name__)

ABI = 5
VARIABLE = "VARANGIAN_KERNELS"
VERSIONS = {"": None, "none": 0, "v1": 1, "v3": 3, "v4": 4}
NOT_BUILT = "there was no C compiler when varangian was installed"

VERBS: dict[str, tuple[type, ...]] = {
    "gram": (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p),
    "gram_exact": (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p),
    "combine": (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p),
    "columns": (
        *(c_void_p, c_int64, c_int64, c_void_p, c_int64),
        *(c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p),
    ),
    "weighted": (
        *(c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64),
        *(c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p),
    ),
    "majority": (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_float, c_void_p),
    **{
        f"landed_{wire}_{row}": (c_void_p, c_int64, c_void_p)
        for wire in ("float32", "bfloat16")
        for row in ("float32", "bfloat16")
    },
}
"""Arguments of each verb, as the C side declares them."""


class KernelsRefused(RuntimeError):
    """VARANGIAN_KERNELS asks for kernels that cannot run here."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they were not built or are not wanted."""
    return opened()[0]


@cache
def opened() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernels, or why there are none; a build of other sources is not used, and logged."""
    if _wanted() == 0:
        return None, f"{VARIABLE}=none asks for none"
    found = importlib.util.find_spec("varangian.aggregators.kernels._native")
    if found is None or found.origin is None:
        return None, NOT_BUILT
    loaded = ctypes.CDLL(found.origin)
    if is_current(loaded):
        return loaded, ""
    log.warning("%s is of other sources than this version; slower kernels take its place", found.origin)
    return None, f"{found.origin} was built from the sources of another version"


def is_current(loaded: ctypes.CDLL) -> bool:
    """Whether a library has the functions that this version calls, with the same arguments."""
    if loaded.varangian_abi() != ABI:
        return False
    level = loaded.varangian_level()
    return all(hasattr(loaded, f"varangian_{verb}_v{level}") for verb in VERBS)


@cache
def level() -> int:
    """The version of the kernels that runs: the last part of the names of its functions."""
    loaded = library()
    if loaded is None:
        return 0
    best, wanted = int(loaded.varangian_level()), _wanted()
    if wanted is None or wanted == best:
        return best
    if wanted > best or not hasattr(loaded, f"varangian_gram_v{wanted}"):
        raise KernelsRefused(
            f"VARANGIAN_KERNELS=v{wanted} cannot run here: the best version for this processor is v{best}."
        )
    return wanted


def _wanted() -> int | None:
    """The version that the environment asks for: 0 for none, and None for the best."""
    value = os.environ.get(VARIABLE, "")
    if value not in VERSIONS:
        known = ", ".join(filter(None, VERSIONS))
        raise KernelsRefused(f"{VARIABLE} should be one of {known}. Found {value!r}.")
    return VERSIONS[value]


@cache
def function(verb: str, version: int) -> Callable[..., int]:
    """A function of the library; while it runs, other Python threads do too."""
    found: Callable[..., int] = getattr(library(), f"varangian_{verb}_v{version}")
    found.argtypes = VERBS[verb]  # type: ignore[attr-defined]
    return found
