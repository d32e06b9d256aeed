"""What the workers of a run are called."""

from __future__ import annotations


def default_names(n: int) -> tuple[str, ...]:
    """`w00` to `w14` for n = 15: padded, so that sorting by name is sorting by number."""
    width = max(2, len(str(n - 1)))
    return tuple(f"w{i:0{width}d}" for i in range(n))
