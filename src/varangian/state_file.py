"""State files: trees of tensors and plain values in one file of safetensors, written whole or not at all.

The plain values are JSON in the metadata, with a seal; each tensor has a digest among them. So a file that
was cut off, changed or written by something else is recognised, and reading one runs no code.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import xxhash
from torch import Tensor

from varangian import files

Tree: TypeAlias = "bool | int | float | str | bytes | Tensor | Sequence[Tree] | Mapping[str, Tree] | None"
"""Plain values and tensors, in mappings by name and in sequences; a tuple comes back as a list."""

FORMAT, VERSION = "varangian state", 1
METADATA = "__metadata__"
TENSOR, BYTES, FLOAT = "$tensor", "$bytes", "$float"
"""Keys that stand for what JSON lacks."""
MOST_HEADER = 100_000_000
"""Bytes of a header, as in other readers of the format."""
PIECE = 1 << 28
"""Bytes that are read or written by one call."""
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in TYPES.items()}


class StateFileError(Exception):
    """A state file that cannot be used; `reason` is the end of a sentence that has a place for its path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class StateFile:
    """The content of a state file."""

    plain: Mapping[str, Any]
    """The plain values; `tensors` among them are the digests."""
    tensors: Mapping[str, Tensor]


def flatten(tree: Tree) -> tuple[Any, dict[str, Tensor]]:
    """A tree as what JSON has, and its tensors by name: the path to each, joined by `/`.

    Raises:
        TypeError: something in it cannot be kept, or a key is no text, or one that begins with `$`.
    """
    tensors: dict[str, Tensor] = {}
    return _flatten(tree, (), tensors), tensors


def _flatten(tree: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    match tree:
        case None | bool() | int() | str():
            return tree
        case float():
            return tree if math.isfinite(tree) else {FLOAT: str(float(tree))}
        case bytes():
            return {BYTES: base64.b64encode(tree).decode()}
        case Tensor():
            name = _name(path)
            tensors[name] = tree
            return {TENSOR: name}
        case Mapping():
            if wrong := [key for key in tree if not isinstance(key, str) or key.startswith("$")]:
                raise TypeError(
                    f"A key of {_place(path)} should be text without a `$` before it. Found {wrong[0]!r}."
                )
            return {key: _flatten(value, (*path, key), tensors) for key, value in tree.items()}
        case Sequence() if not isinstance(tree, bytearray | memoryview):
            return [_flatten(value, (*path, str(place)), tensors) for place, value in enumerate(tree)]
        case _:
            raise TypeError(
                f"{_place(path)} should be a plain value or a tensor. Found {type(tree).__name__}."
            )


def _name(path: Sequence[str]) -> str:
    """A name that no other path has, nor the metadata."""
    name = "/".join(key.replace("%", "%25").replace("/", "%2F") for key in path)
    return f"%{name}" if name in ("", METADATA) else name


def _place(path: Sequence[str]) -> str:
    return ".".join(path) or "the tree"


def unflatten(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `flatten` was given, with lists in the place of tuples.

    Raises:
        ValueError: a tensor is missing, or something is not as `flatten` writes it.
    """
    match plain:
        case list():
            return [unflatten(value, tensors) for value in plain]
        case dict() if any(key.startswith("$") for key in plain):
            return _special(plain, tensors)
        case dict():
            return {key: unflatten(value, tensors) for key, value in plain.items()}
        case _:
            return plain


def _special(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tree:
    match plain:
        case {"$tensor": str(name)} if len(plain) == 1 and name in tensors:
            return tensors[name]
        case {"$bytes": str(text)} if len(plain) == 1:
            return base64.b64decode(text, validate=True)
        case {"$float": "inf" | "-inf" | "nan" as text} if len(plain) == 1:
            return float(text)
        case _:
            raise ValueError(
                f"A value should be plain, or name a tensor that is there. Found {plain!r:.100}."
            )


class Draft:
    """A state file that is written under a temporary name, beside its place, and not there yet."""

    def __init__(self, path: Path, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write it; the tensors are not needed afterwards.

        Args:
            path: its place, in a folder that exists.
            plain: what JSON has, by name; `tensors` is added.
            tensors: by name.

        Raises:
            OSError: it cannot be written. Nothing is left of it then.
        """
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, flags, 0o666)
        try:
            self.size = sum(_write_all(self._descriptor, data) for data in encode(plain, tensors))
            """Bytes."""
        except BaseException:
            self.discard()
            raise

    def publish(self) -> None:
        """Put it in its place, when it is on the disk.

        Raises:
            OSError: that is not possible. Nothing is left of it then, and what was in its place is there.
        """
        try:
            files.fsync(self._descriptor)
            os.replace(self._temporary, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                files.fsync(folder)
            finally:
                os.close(folder)
        finally:
            self.discard()

    def discard(self) -> None:
        """Throw away what is not in its place."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)


def write(path: Path, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Write the whole file or none of it, also when the machine stops half way; returns its bytes.

    Args:
        path: of the file, in a folder that exists.
        plain: what JSON has, by name; `tensors` is added.
        tensors: by name.

    Raises:
        OSError: it cannot be written. What was in its place before is still there.
    """
    draft = Draft(path, plain, tensors)
    draft.publish()
    return draft.size


def encode(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of a state file, piece by piece; those of tensors are not copied.

    Args:
        plain: what JSON has, by name; `tensors` is added.
        tensors: by name.
    """
    # Those of wide numbers first: so each begins at a multiple of the width of its numbers.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    dense = {name: tensors[name].detach().cpu().contiguous() for name in order}
    digests = {name: digest(tensor) for name, tensor in dense.items()}
    text = json.dumps({**plain, "tensors": digests}, allow_nan=False, separators=(",", ":"))
    known = {"format": FORMAT, "version": str(VERSION), "plain": text, "seal": _seal(text)}
    header: dict[str, Any] = {METADATA: known}
    end = 0
    for name, tensor in dense.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _type(name, tensor),
            "shape": [*tensor.shape],
            "data_offsets": [start, end],
        }
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    yield memoryview(len(content).to_bytes(8, "little") + content)
    yield from map(_bytes, dense.values())


def _type(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in NAMES:
        raise TypeError(f"{name} should be a tensor of {', '.join(NAMES.values())}. Found {tensor.dtype}.")
    return NAMES[tensor.dtype]


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a dense tensor on the CPU."""
    data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return data


def digest(tensor: Tensor) -> str:
    """XXH3-128 of a dense tensor on the CPU, its type and shape too; for damage, not for forgers."""
    made = xxhash.xxh3_128(f"{tensor.dtype} {[*tensor.shape]} ".encode())
    made.update(_bytes(tensor))
    return made.hexdigest()


def _seal(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _write_all(descriptor: int, data: memoryview) -> int:
    """Write all of it, in as many calls as that takes; returns the number of bytes."""
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done : done + PIECE])
    return done


def read(path: Path, begin: int = 0, size: int | None = None) -> StateFile:
    """A state file, all of it checked.

    Its bytes are read and not mapped: a failing disk is then an error, and no signal that ends the process.

    Args:
        path: of the file.
        begin: where in the file it begins.
        size: its bytes; None is up to the end of the file.

    Raises:
        StateFileError: it is no such file, or damaged.
        OSError: it cannot be read.
    """
    with _opened(path) as descriptor:
        plain, entries, start = _head(path, descriptor, begin, size)
        expected = plain.get("tensors")
        if not isinstance(expected, dict) or expected.keys() != entries.keys():
            raise StateFileError(path, "its header was changed")
        tensors = {name: entry.read(path, descriptor, start) for name, entry in entries.items()}
    damaged = [name for name, tensor in tensors.items() if digest(tensor) != expected[name]]
    if damaged:
        raise StateFileError(path, f"its tensor {damaged[0]} is damaged")
    return StateFile(plain, tensors)


def head(path: Path) -> Mapping[str, Any]:
    """The plain values of a state file alone; its tensors are not looked at.

    Raises:
        StateFileError: it is no such file, or ends early.
        OSError: it cannot be read.
    """
    with _opened(path) as descriptor:
        return _head(path, descriptor)[0]


@contextlib.contextmanager
def _opened(path: Path) -> Generator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header describes it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, name: str, value: Any) -> _Entry:
        """From the header.

        Raises:
            ValueError: it is not as it should be.
        """
        match value:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
                len(value) == 3
                and dtype in TYPES
                and all(type(size) is int and size >= 0 for size in shape)
            ):
                entry = cls(name, TYPES[dtype], tuple(shape), start, end)
                if start >= 0 and end - start == math.prod(shape) * entry.dtype.itemsize:
                    return entry
            case _:
                pass
        raise ValueError(name)

    def read(self, path: Path, descriptor: int, start: int) -> Tensor:
        data = torch.empty(self.end - self.start, dtype=torch.uint8)
        _read_into(path, descriptor, data.numpy().data, start + self.start)
        return data.view(self.dtype).reshape(self.shape)


def _head(
    path: Path, descriptor: int, begin: int = 0, size: int | None = None
) -> tuple[dict[str, Any], dict[str, _Entry], int]:
    """The plain values, the tensors as the header describes them, and where their bytes begin."""
    foreign = StateFileError(path, "it is no file of a state of varangian")
    there = max(0, os.fstat(descriptor).st_size - begin)
    size = there if size is None else min(size, there)
    length = int.from_bytes(_read_exactly(path, descriptor, min(8, size), begin), "little")
    if size < 8 or not 2 <= length <= MOST_HEADER:
        raise foreign
    if 8 + length > size:
        # A file of another kind has other bytes in the place of a length; ours begins so.
        begins = _read_exactly(path, descriptor, min(len(METADATA) + 3, size - 8), begin + 8)
        raise _ends_early(path, size) if f'{{"{METADATA}"'.encode().startswith(begins) else foreign
    try:
        header = _parse(_read_exactly(path, descriptor, length, begin + 8))
        known = header.pop(METADATA)
        if known["format"] != FORMAT:
            raise foreign
        version, text = int(known["version"]), known["plain"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise foreign from None
    if version > VERSION:
        newer = f"it was written by a newer varangian (version {version}, this one knows {VERSION})"
        raise StateFileError(path, newer)
    changed = StateFileError(path, "its header was changed")
    if version != VERSION or known.get("seal") != _seal(text):
        raise changed
    try:
        plain = _parse(text)
        entries = {name: _Entry.of(name, value) for name, value in header.items()}
        end = _end(entries.values())
    except (ValueError, RecursionError):
        raise changed from None
    if size < 8 + length + end:
        raise _ends_early(path, size)
    if size > 8 + length + end:
        raise StateFileError(path, f"it has {size - 8 - length - end} bytes too many")
    return plain, entries, begin + 8 + length


def _end(entries: Iterable[_Entry]) -> int:
    """Where the last tensor ends.

    Raises:
        ValueError: they do not follow each other without a gap.
    """
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise ValueError(entry.name)
        end = entry.end
    return end


def _ends_early(path: Path, size: int) -> StateFileError:
    return StateFileError(path, f"it ends early, after {size} bytes")


def _parse(text: bytes | str) -> dict[str, Any]:
    """A mapping from JSON in which no key stands twice.

    Raises:
        ValueError: it is something else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found

    def constant(name: str) -> None:
        raise ValueError(f"JSON has no {name}")

    value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    if not isinstance(value, dict):
        raise ValueError("should be a mapping")
    return value


def _read_exactly(path: Path, descriptor: int, count: int, start: int) -> bytes:
    data = bytearray(count)
    _read_into(path, descriptor, memoryview(data), start)
    return bytes(data)


def _read_into(path: Path, descriptor: int, data: memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        count = os.preadv(descriptor, [data[done : done + PIECE]], start + done)
        if not count:  # it was cut off while it is read
            raise _ends_early(path, start + done)
        done += count
