"""Text for a terminal."""

from __future__ import annotations

from varangian.protos.text import escape as printable

__all__ = ["NOTE", "printable"]

NOTE = 1000
"""Characters of a sentence of our own, which may have a path and a reason in it."""
