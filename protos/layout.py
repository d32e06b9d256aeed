"""What the flat vector of a run means: the names and shapes of the parameters, in order.

Both ends compute the layout from their own model and compare, so that a worker with another model is
refused before it has sent a single number. Every parameter is float32 on the wire.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

DIGEST_BYTES = 16
TEXT_LIMIT = 1 << 20
"""Bytes of text that `parse` looks at: some ten thousand parameters."""
NUMEL_LIMIT = 1 << 40
"""Numbers in one vector: far above any model, far below where 64-bit sizes in bytes overflow."""

LINE = re.compile(
    r"(?P<shape>scalar|[1-9][0-9]{0,12}(?:x[1-9][0-9]{0,12}){0,15}) (?P<name>[^\s\x00-\x1f\x7f]{1,256})"
)


class LayoutError(ValueError):
    """A layout that cannot be sent, or text that is not a layout."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the float32 parameters of a model, in the order of the flat vector."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        if not self.entries:
            raise LayoutError("A layout should have at least one parameter. Found none.")
        names: set[str] = set()
        for line, (name, shape) in zip(self._lines(), self.entries, strict=True):
            if not LINE.fullmatch(line):
                raise LayoutError(
                    "A parameter should have a name without spaces and sizes >= 1. Found "
                    f"{described((name, shape))}."
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
        return sum(math.prod(shape) for _, shape in self.entries)

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

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The layout whose `text` this is.

        Raises:
            LayoutError: when it is no layout, or not written as `text` would write it.
        """
        if len(text) > TEXT_LIMIT:
            raise LayoutError(
                f"The text of a layout should have at most {TEXT_LIMIT} bytes. Found {len(text)}."
            )
        if not text.endswith("\n"):
            raise LayoutError("The text of a layout should end with a line feed.")
        # Not splitlines: it also splits at characters that are not line feeds.
        return cls(tuple(map(entry, text[:-1].split("\n"))))

    def difference(self, other: Layout) -> str | None:
        """None when `other` is the same; otherwise a sentence about the first parameter that differs."""
        if self.entries == other.entries:
            return None
        for index, (mine, theirs) in enumerate(zip(self.entries, other.entries, strict=False)):
            if mine != theirs:
                return f"Parameter {index} should be {described(mine)}. Found {described(theirs)}."
        index = min(len(self.entries), len(other.entries))
        counts = f"The model should have {len(self.entries)} parameters. Found {len(other.entries)}"
        if len(self.entries) > index:
            return f"{counts}: {described(self.entries[index])} is missing."
        return f"{counts}: {described(other.entries[index])} is one too many."


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def entry(line: str) -> tuple[str, tuple[int, ...]]:
    match = LINE.fullmatch(line)
    if match is None:
        raise LayoutError(f"A line of a layout should be a shape, a space and a name. Found {line!r:.300}.")
    shape = match["shape"]
    return match["name"], () if shape == "scalar" else tuple(map(int, shape.split("x")))


def described(item: tuple[str, tuple[int, ...]]) -> str:
    name, shape = item
    return f"{name!r} of shape {list(shape)}"
