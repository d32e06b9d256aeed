"""Settings and data that the machines of a run share, as both ends compare them at Join.

Each entry is a name and a text. Texts that are lists of numbers are equal when the numbers are nearly so:
machines round differently, and decoders of images too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

TEXT_LIMIT = 32 << 10
"""Bytes of text that are looked at."""
SHOWN = 120
"""Characters of a value that a sentence repeats."""
NEAR = 1e-3
"""How far numbers may be apart, as a share of the largest."""


@dataclass(frozen=True)
class Common:
    """Settings and facts by name; empty where nothing is compared."""

    entries: Mapping[str, str] = field(default_factory=dict[str, str])
    advice: Mapping[str, str] = field(default_factory=dict[str, str])
    """What to do where an entry differs, as a sentence; not sent."""
    loose: frozenset[str] = frozenset()
    """Entries that may differ, which is worth a warning; not sent."""

    @cached_property
    def text(self) -> str:
        """One line for each entry: a JSON list of name and text."""
        return "".join(f"{json.dumps([name, value])}\n" for name, value in self.entries.items())

    def differences(self, text: str) -> Iterator[tuple[str, str]]:
        """The names of entries that differ from those that the other end sent, each with a sentence.

        Who sends nothing is not compared.
        """
        if not text or not self.entries:
            return
        theirs = parsed(text)
        for name, ours in self.entries.items():
            found = theirs.get(name)
            if found is not None and not alike(ours, found):
                says = f"`{name}` should be {shown(ours)}, as at the server. Found {shown(found)}."
                if numbers(ours) is not None:
                    says = f"`{name}` should be as at the server. Found others."
                yield name, f"{says} {self.advice.get(name, '')}".rstrip()


def parsed(text: str) -> dict[str, str]:
    """Entries from a text of the other end's, as far as they are any."""
    entries = dict[str, str]()
    for line in text[:TEXT_LIMIT].split("\n"):
        try:
            name, value = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(name, str) and isinstance(value, str):
            entries[name] = value
    return entries


def alike(ours: str, theirs: str) -> bool:
    """Whether two texts say the same."""
    if ours == theirs:
        return True
    one, other = numbers(ours), numbers(theirs)
    if one is None or other is None or len(one) != len(other):
        return False
    room = NEAR * max(map(abs, one), default=0.0)
    return all(abs(a - b) <= room for a, b in zip(one, other, strict=True))


def numbers(text: str) -> list[float] | None:
    """The finite numbers in a JSON list; None when it is no such list."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    good = [item for item in found if isinstance(item, int | float) and math.isfinite(item)]
    return [float(item) for item in good] if len(good) == len(found) and found else None


def shown(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
