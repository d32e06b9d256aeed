"""Text for a terminal."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    r"[^\x20-\x7e\u00a0-\uffff]|[\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

NOTE = 1000
"""Characters of a sentence of our own, which may have a path and a reason in it."""


def printable(text: str, limit: int = 200) -> str:
    """Text from elsewhere without what would move a terminal's cursor, and not too long."""
    safe = _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text[: limit + 1])
    return safe if len(text) <= limit else f"{safe[:limit]}..."
