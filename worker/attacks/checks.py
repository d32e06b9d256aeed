"""What the fields of attacks have in common."""

from __future__ import annotations

import math


def check_positive(**values: float) -> None:
    """For `__post_init__`: positive, finite numbers."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` should be a positive, finite number. Found {value}.")
