"""Weights that clients claim, as numbers of examples: which of them count, and for how much at most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from varangian.aggregators.numeric.shares import WeightCap


def read_claims(claims: Mapping[str, Any]) -> dict[str, float] | None:
    """The weight of each client: what it claims, and the least of all for what is no positive number.

    None where no claim can be used.
    """
    numbers = {client: _number(claim) for client, claim in claims.items()}
    known = [number for number in numbers.values() if number is not None]
    if not known:
        return None
    return {client: min(known) if number is None else number for client, number in numbers.items()}


def _number(claim: Any) -> float | None:
    try:
        number = float(claim)
    except (OverflowError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def checked_cap(cap: float | None, path: str) -> WeightCap | None:
    """The cap of an argument: the share of the weight that the f heaviest clients have at most.

    Raises:
        ValueError: it is no such share.
    """
    if cap is None:
        return None
    if not 0 < cap < 0.5:
        raise ValueError(f"{path}: should be above 0 and below 1/2. Found {cap}.")
    return WeightCap(alpha_star=cap)
