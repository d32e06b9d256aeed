"""Layout of the flat vector of a run: the names and shapes of the parameters, in order.

Both ends compute the layout from their own model and compare, so that a worker with another model is
refused before it has sent a single number. Every parameter is float32 on the wire.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import Final

from varangian.protos.text import quote

DIGEST_BYTES = 16
TEXT_LIMIT = 1 << 20
"""Bytes of text: some ten thousand parameters."""
BUFFER = "buffer:"
"""Before the name of a buffer: those that travel are the last entries."""
SHOWN = 300
"""Characters of a line that a sentence repeats."""
LINE_FEED: Final = "\n"
NUMEL_LIMIT = 1 << 40
"""Numbers in one vector: far above any model, far below where 64-bit sizes in bytes overflow."""

LINE = re.compile(
    r"(?P<shape>scalar|[1-9][0-9]{0,12}(?:x[1-9][0-9]{0,12}){0,15}) (?P<name>[^\s\x00-\x1f\x7f]{1,256})"
)


class LayoutError(ValueError):
    """A layout that cannot be sent, or text that is not a layout."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the float32 parameters of a model, in the order of the flat vector.

    Behind them may be buffers of the model, which are numbers of the vector, too.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise LayoutError("A layout should have at least one parameter. Found none.")
        names: set[str] = set()
        for line, (name, shape) in zip(self._lines(), self.entries, strict=True):
            if not LINE.fullmatch(line):
                raise LayoutError(
                    "A parameter should have a name without spaces and sizes >= 1. Found "
                    f"{describe((name, shape))}."
                )
            if name in names:
                raise LayoutError(f"Parameter names should be unique. Found {name!r} twice.")
            names.add(name)
        if self.numel > NUMEL_LIMIT:
            raise LayoutError(f"A layout should have at most {NUMEL_LIMIT} numbers. Found {self.numel}.")
        if len(self.text.encode()) > TEXT_LIMIT:
            raise LayoutError(f"The text of a layout should have at most {TEXT_LIMIT} bytes.")

    @cached_property
    def numel(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the parameters, which make up the flat vector in this order."""
        return tuple(math.prod(shape) for _, shape in self.entries)

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the parameters."""
        return tuple(shape for _, shape in self.entries)

    @cached_property
    def trained(self) -> Layout:
        """The layout of the parameters alone, without the buffers at the end."""
        entries = tuple(entry for entry in self.entries if not entry[0].startswith(BUFFER))
        return self if len(entries) == len(self.entries) else Layout(entries)

    @cached_property
    def buffers(self) -> int:
        """How many numbers at the end of the vector are buffers."""
        return self.numel - self.trained.numel

    @cached_property
    def text(self) -> str:
        """One line for each parameter: `64x32 hidden.weight`, or `scalar temperature`."""
        return "".join(f"{line}\n" for line in self._lines())

    @cached_property
    def digest(self) -> bytes:
        """blake2b of the text, 16 bytes."""
        return blake2b(self.text.encode(), digest_size=DIGEST_BYTES).digest()

    def _lines(self) -> Iterator[str]:
        return (f"{shape_text(shape)} {name}" for name, shape in self.entries)

    def difference(self, text: str) -> str | None:
        """None when this is our text; otherwise a sentence about the first line that differs.

        The text of the other end is compared and never parsed, so its cost is that of comparing bytes.
        """
        ours = self.text
        if text == ours:
            return None
        at = first_difference(ours, text)
        start = ours.rfind("\n", 0, at) + 1
        counts = f"The model should have {len(self.entries)} parameters."
        if at == start == len(ours):
            line = quote(line_at(text, start), SHOWN)
            return f"{counts} Found {text.count(LINE_FEED)}: {line} is one too many."
        if at == start == len(text):
            line = quote(line_at(ours, start), SHOWN)
            return f"{counts} Found {text.count(LINE_FEED)}: {line} is missing."
        # Of a line that is too long to be shown, the part that differs.
        start = max(start, at - SHOWN // 2)
        mine, theirs = line_at(ours, start), line_at(text, start)
        if mine == theirs:
            return "The text of a layout should end with a line feed."
        index = ours.count(LINE_FEED, 0, at)
        return (
            f"Parameter {index} should be {quote(mine, SHOWN)}, its shape and its name. "
            f"Found {quote(theirs, SHOWN)}."
        )


class Fragments:
    """A split of the parameters of a layout into parts of about equal size, of which each round has one.

    Parameters are dealt out as wholes, the largest first, each to the fragment with the fewest numbers so
    far. A fragment has its parameters in the order of the layout.

    Raises:
        LayoutError: there are more fragments than parameters.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        if not 1 <= count <= len(layout.sizes):
            raise LayoutError(
                f"`server.fragments` should be at most {len(layout.sizes)}, the number of parameter "
                f"tensors of the model. Found {count}."
            )
        self.count = count
        self.numels = [0] * count
        """How many numbers each has."""
        self.entries: list[list[int]] = [[] for _ in range(count)]
        """Of each, the places of its parameters in the layout."""
        for place in sorted(range(len(layout.sizes)), key=lambda place: (-layout.sizes[place], place)):
            least = min(range(count), key=self.numels.__getitem__)
            self.numels[least] += layout.sizes[place]
            self.entries[least].append(place)
        starts = [0, *accumulate(layout.sizes)]
        self.slices: list[list[slice]] = []
        """Of each, where its numbers lie in the vector of all parameters."""
        for places in self.entries:
            places.sort()
            self.slices.append([slice(starts[place], starts[place + 1]) for place in places])

    def of(self, round: int) -> int:
        """The fragment of a round."""
        return round % self.count

    def changed(self, first: int, round: int) -> set[int]:
        """The fragments of the rounds from the first one until before this one; all where it went back."""
        if round < first:
            return set(range(self.count))
        return {self.of(one) for one in range(max(first, round - self.count), round)}

    def slices_of(self, fragments: Collection[int]) -> list[slice]:
        """Where the numbers of some fragments lie in the vector of all parameters, in its order."""
        found = list[slice]()
        for part in sorted(
            (part for one in fragments for part in self.slices[one]), key=lambda one: one.start
        ):
            if found and found[-1].stop == part.start:
                part = slice(found.pop().start, part.stop)
            found.append(part)
        return found


@lru_cache(maxsize=16)
def fragments_of(layout: Layout, count: int) -> Fragments:
    """The fragments of a layout.

    Raises:
        LayoutError: as `Fragments`.
    """
    return Fragments(layout, count)


def first_difference(one: str, other: str) -> int:
    """The length of the longest common prefix of two texts, by bisection."""
    same, end = 0, min(len(one), len(other))
    while same < end:
        middle = (same + end + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            end = middle - 1
    return same


def line_at(text: str, start: int) -> str:
    """The rest of a line from there, not much more of it than is shown."""
    return text[start : start + SHOWN + 1].partition(LINE_FEED)[0]


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def describe(item: tuple[str, tuple[int, ...]]) -> str:
    name, shape = item
    return f"{name!r} of shape {list(shape)}"
