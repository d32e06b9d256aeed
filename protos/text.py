"""Escaping of text from the other end, before it reaches a log, a terminal, a record or another peer."""

from __future__ import annotations

SHOWN = 200
"""Characters of a text that are shown where nothing else is said."""


def escape(text: str, most: int = SHOWN) -> str:
    """A text on one line, at most `most` characters of it, with all that could steer a terminal escaped.

    That is everything that is not printable: control characters with line ends and escape sequences, marks
    that change the direction of text, characters of no width, and halves of surrogate pairs. The cost
    depends on `most` and not on the length of the text.
    """
    cut = text[: most + 1]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return cut if len(cut) <= most else f"{cut[: max(0, most - 3)]}..."


def quote(text: str, most: int = SHOWN) -> str:
    """An escaped text in quotation marks, for the middle of a sentence."""
    return f"'{escape(text, most)}'"
