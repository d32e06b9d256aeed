"""Settings and data that the machines of a run share, as both ends compare them at Join.

Each entry is a name and a text. Texts that are lists of numbers are equal when the numbers are nearly so:
machines round differently, and decoders of images too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from varangian.protos.text import escape

MIDDLE: Final = '", "'
END: Final = '"]'
"""Separator between the name and the value of an entry in its line, and after the value."""
LIST = re.compile(r'\[-?[0-9.e+-]{1,24}(?:, -?[0-9.e+-]{1,24})*\]"\]')
"""The value of an entry that is a list of numbers."""
DIGITS = 32
"""Characters for each number of a list, with what is around it."""
OTHERS = 64
"""Entries that the other end may have beside ours."""
EXTRA = 8 << 10
"""Characters of text that are looked at beside twice our own."""
SHOWN = 120
"""Characters of a value that a sentence repeats."""
TOLERANCE = 1e-3
"""Largest difference of numbers, relative to the largest of them."""


@dataclass(frozen=True)
class SharedSettings:
    """Settings and facts by name; empty where nothing is compared."""

    entries: Mapping[str, str] = field(default_factory=dict[str, str])
    advice: Mapping[str, str] = field(default_factory=dict[str, str])
    """Advice where an entry differs, as a sentence; not sent."""
    loose: frozenset[str] = frozenset()
    """Entries that may differ, which is worth a warning; not sent."""

    @cached_property
    def text(self) -> str:
        """One line for each entry: a JSON list of name and text."""
        return "".join(f"{write_line(name, value)}\n" for name, value in self.entries.items())

    def differences(self, text: str) -> Iterator[tuple[str, str]]:
        """The names of entries that differ from those that the other end sent, each with a sentence.

        Who sends nothing is not compared. What was sent is compared with our text and never parsed; only
        as much of it is looked at as an honest end could have sent.
        """
        if not text or not self.entries or text == self.text:
            return
        # What is left behind the last line feed is the rest of a longer text, or nothing.
        lines = text[: 2 * len(self.text) + EXTRA].split("\n", len(self.entries) + OTHERS)[:-1]
        theirs = dict(map(head_and_rest, lines))
        for name, ours in self.entries.items():
            head, mine = head_and_rest(write_line(name, ours))
            found = theirs.get(head)
            if found is not None and found != mine and not nearly_equal(mine, found):
                said = escape(found.removesuffix(END).replace('\\"', '"'), SHOWN)
                says = f"`{name}` should be {escape(ours, SHOWN)}, as at the server. Found {said}."
                if parse_numbers(mine, len(mine)) is not None:
                    says = f"`{name}` should be as at the server. Found others."
                yield name, f"{says} {self.advice.get(name, '')}".rstrip()


def write_line(name: str, value: str) -> str:
    """The line of an entry."""
    return json.dumps([name, value])


def head_and_rest(line: str) -> tuple[str, str]:
    """A line up to its value, and the value as it is written."""
    head, middle, rest = line.partition(MIDDLE)
    return head + middle, rest


def nearly_equal(ours: str, theirs: str) -> bool:
    """Whether two values are lists of equally many numbers that are nearly equal."""
    one = parse_numbers(ours, len(ours))
    other = None if one is None else parse_numbers(theirs, len(one) * DIGITS)
    if one is None or other is None or len(one) != len(other):
        return False
    room = TOLERANCE * max(map(abs, one), default=0.0)
    return all(abs(a - b) <= room for a, b in zip(one, other, strict=True))


def parse_numbers(value: str, most: int) -> list[float] | None:
    """The finite numbers of a list in at most so many characters; None for anything else."""
    if len(value) > most or not LIST.fullmatch(value):
        return None
    try:
        found = [float(number) for number in value[1 : -len("]" + END)].split(", ")]
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None
