"""Arguments of the reduction: each of the right type and within its bounds, or an error that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

import torch.distributed as dist


def check(given: Mapping[str, Any]) -> None:
    """See that arguments of `varangian.torch.Reduction` are what they should be.

    Raises:
        ValueError: the first that is not, by its name.
    """
    for name, (rule, fits) in RULES.items():
        if name in given and not fits(given[name]):
            raise ValueError(f"{name}: should be {rule}. Found {given[name]!r}.")


def numbers(name: str, given: Any) -> list[float]:
    """Positive numbers, as of a list, an array or a tensor.

    Raises:
        ValueError: they are none.
    """
    rule = f"{name}: should be positive numbers, one for each rank, as [32, 32, 8]. Found {given!r}."
    if isinstance(given, str | bytes):
        raise ValueError(rule)
    try:
        found = [*map(float, given)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(rule) from error
    if not found or not all(math.isfinite(each) and each > 0 for each in found):
        raise ValueError(rule)
    return found


def _whole(value: Any, least: int | None = None) -> bool:
    fits = not isinstance(value, bool) and isinstance(value, Integral)
    return fits and (least is None or int(value) >= least)


def _real(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


def _function(value: Any) -> bool:
    return value is None or callable(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


MOST_BLOCKS = 1000
"""Most blocks of the columns of a rank, each of which takes n^2 numbers on the wire."""
RULES: dict[str, tuple[str, Any]] = {
    "f": ("an integer of at least 0", lambda value: _whole(value, 0)),
    "process_group": (
        "a process group of torch.distributed",
        lambda value: value is None or isinstance(value, dist.ProcessGroup),
    ),
    "seed": ("an integer", _whole),
    "on_step": ("a function that takes a Step", _function),
    "log": ("the path of a file", lambda value: value is None or isinstance(value, str | PurePath)),
    "momentum": ("at least 0 and below 1", lambda value: _real(value) and 0 <= value < 1),
    "per_bucket": ("True or False", _flag),
    "audit": (
        f"0, or from {1 / MOST_BLOCKS:g} to 1",
        lambda value: _real(value) and (value == 0 or 1 / MOST_BLOCKS <= value <= 1),
    ),
    "suspect_after": ("a positive integer", lambda value: _whole(value, 1)),
    "on_suspect": ("a function that takes a SuspectRank", _function),
    "on_error": ("'raise' or 'nan'", lambda value: isinstance(value, str) and value in ("raise", "nan")),
    "leave_out_opposed": ("True or False", _flag),
    "weight": (
        "a positive number, what the gradient of this replica weighs",
        lambda value: value is None or (_real(value) and math.isfinite(value) and value > 0),
    ),
}
"""What each should be, and whether a value is that."""
