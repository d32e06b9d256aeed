"""Slot: a file for one state of a worker, which is written over in place.

Writing into a file that exists takes a small part of the time that a new one takes. A label in front says
of which round the state is; it is written after the state, so what was cut off half way is recognised.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import xxhash

from varangian.state_file import StateFileError, Tree, encode, flatten, read, unflatten

ROOM = 4096
"""Bytes of a label: one page, which a kill never tears."""
SEAL = 32
"""Characters of the digest of a label."""


@dataclass(frozen=True)
class Label:
    """The label of a state: where in which run it belongs."""

    run: str
    epoch: int
    """Of the server when the state was computed."""
    round: int
    """The last round that is in it."""
    order: int
    """The larger, the later it was written."""
    until: int | None = None
    """The first round that was computed after it; None while there is none."""
    final: bool = False
    """Whether `until` holds although no state is kept of that round."""
    borders: tuple[int, ...] = ()
    """Rounds at which a server can be resumed, and for which this is the state."""
    confirmed: int | None = None
    """The last round of which it was known later that the server had counted the vector."""
    size: int = 0
    """Bytes of the state."""


class Slot:
    """A file with a label and the state that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, label: Label, tree: Tree) -> Label:
        """Write a state over what is there, its label last; returns the label with its size.

        Raises:
            OSError: it cannot be written. Neither this state nor what was there can be read then.
            TypeError: something in the tree cannot be kept.
        """
        plain, tensors = flatten(tree)
        pieces = [*encode({"tree": plain, "of": _identity(label)}, tensors)]
        label = replace(label, size=sum(map(len, pieces)))
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            place = ROOM
            for piece in pieces:
                place += _write(descriptor, piece, place)
            _write(descriptor, memoryview(_encoded(label)), 0)
        finally:
            os.close(descriptor)
        return label

    def relabel(self, label: Label) -> None:
        """Write the label alone.

        Raises:
            OSError: it cannot be written.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _write(descriptor, memoryview(_encoded(label)), 0)
        finally:
            os.close(descriptor)

    def label(self) -> Label | None:
        """The label; None if there is none that can be used."""
        try:
            with open(self.path, "rb") as stream:
                text = stream.read(ROOM)
            seal, content = text[:SEAL], text[SEAL:]
            if len(text) < ROOM or xxhash.xxh3_128_hexdigest(content).encode() != seal:
                return None
            found: dict[str, Any] = json.loads(content)
            found["borders"] = tuple(found["borders"])
            return Label(**found)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def read(self, label: Label) -> Any:
        """The tree of the state that a label names.

        Raises:
            StateFileError: it is damaged, or another one.
            OSError: it cannot be read.
        """
        found = read(self.path, ROOM, label.size)
        if found.plain.get("of") != _identity(label):
            raise StateFileError(self.path, "its label is that of another state")
        try:
            return unflatten(found.plain["tree"], found.tensors)
        except (KeyError, ValueError) as error:
            raise StateFileError(self.path, str(error)) from error


def _identity(label: Label) -> list[str | int]:
    """Fields of a label that stay as they are."""
    return [label.run, label.epoch, label.round, label.order]


def _encoded(label: Label) -> bytes:
    values = {field.name: getattr(label, field.name) for field in fields(label)}
    content = json.dumps(values, separators=(",", ":")).encode().ljust(ROOM - SEAL)
    if len(content) > ROOM - SEAL:
        raise ValueError(f"A label should have {ROOM - SEAL} bytes at most. Found {len(content)}.")
    return xxhash.xxh3_128_hexdigest(content).encode() + content


def _write(descriptor: int, data: memoryview, place: int) -> int:
    """Write all of it at a place, in as many calls as that takes; returns the number of bytes."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], place + done)
    return done


def slots_of(folder: Path) -> Sequence[Slot]:
    """The slots that are in a folder; none if it is not there."""
    return [Slot(path) for path in sorted(folder.glob("slot-*"))]
