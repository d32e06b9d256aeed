"""The memory of an attack as a tree of plain values and tensors, for the state file of a worker.

Reading one imports nothing and makes no objects but those of attacks: its classes are looked for in the
modules of attacks alone, of this package and of the attack that is mounted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from varangian.own_classes import is_own, named
from varangian.plugins import describe_error
from varangian.state_file import NAMES, Tree, flatten

NO_MEMORY: Any = object()
"""The memory of an attack that remembers nothing."""
LONG = 1024
"""Bytes in a row that are kept as a tensor, and not as text."""
OURS = "varangian.worker.attacks."
"""The package of attacks whose classes a memory may have."""


class Unpackable(Exception):
    """A memory that no file can keep; the text says what in it."""


def pack(memory: Any, attack: Any) -> Tree:
    """The memory of an attack as a tree; an attack of the user with a method `pack` makes its own.

    Raises:
        Unpackable: something in it cannot be kept.
    """
    if is_own(attack) and hasattr(attack, "pack"):
        try:
            tree = {"kind": "own", "value": attack.pack(memory)}
            flatten(tree)
        except Exception as error:
            raise Unpackable(describe_error(error, named(attack))) from error
        return tree
    return packed(memory, modules_of(attack))


def unpack(tree: Any, attack: Any) -> Any:
    """The memory of an attack from its tree.

    Raises:
        Unpackable: it is that of another attack, or of another version of it.
    """
    try:
        if isinstance(tree, Mapping) and tree.get("kind") == "own":
            return attack.unpack(tree["value"])
        return unpacked(tree, modules_of(attack))
    except Unpackable:
        raise
    except Exception as error:
        raise Unpackable(describe_error(error, named(attack))) from error


def modules_of(attack: Any) -> frozenset[str]:
    """The modules, beside those of this package, whose records the memory of an attack may have."""
    return frozenset(_modules(attack))


def _modules(attack: Any) -> Iterator[str]:
    """The modules of an attack, and of those that are its settings."""
    yield type(attack).__module__
    if dataclasses.is_dataclass(attack):
        settings = [getattr(attack, field.name) for field in dataclasses.fields(attack)]
    else:
        settings = [*getattr(attack, "__dict__", {}).values()]
    for setting in settings:
        if hasattr(setting, "step") or is_own(setting):
            yield from _modules(setting)


def packed(value: Any, modules: frozenset[str] = frozenset()) -> Tree:
    """A value as a tree.

    Args:
        value: of plain values, tensors and attacks' records, in any nesting.
        modules: whose records it may have, beside those of attacks of this package.

    Raises:
        Unpackable: something in it cannot be kept.
    """
    if value is NO_MEMORY:
        return {"kind": "nothing"}
    if type(value) is bytes and len(value) > LONG:
        return {"kind": "bytes", "value": torch.frombuffer(bytearray(value), dtype=torch.uint8)}
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value  # type: ignore[no-any-return]
    if isinstance(value, Tensor):
        return _packed_tensor(value)
    if type(value) in (tuple, list):
        return {"kind": type(value).__name__, "items": [packed(item, modules) for item in value]}
    if type(value) is deque:
        items = [packed(item, modules) for item in value]
        return {"kind": "deque", "items": items, "most": value.maxlen}
    if isinstance(value, dict | MappingProxyType) and type(value) in (dict, MappingProxyType):
        return {
            "kind": "mapping",
            "keys": [packed(key, modules) for key in value],
            "items": [packed(item, modules) for item in value.values()],
        }
    if (fields := _fields(type(value))) is not None:
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        if _class(name, modules) is type(value):
            items = [packed(getattr(value, field), modules) for field in fields]
            return {"kind": "record", "class": name, "fields": [*fields], "items": items}
    raise Unpackable(f"it has a {type(value).__name__}")


def _packed_tensor(value: Tensor) -> Tree:
    if value.layout != torch.strided or value.dtype not in NAMES:
        raise Unpackable(f"it has a tensor of {value.dtype}")
    return {"kind": "tensor", "value": value.detach(), "device": str(value.device)}


def _fields(kind: type) -> tuple[str, ...] | None:
    """The names of the fields of a named tuple or a dataclass; None of another class."""
    if issubclass(kind, tuple) and (names := getattr(kind, "_fields", None)) is not None:
        return tuple(names)
    if dataclasses.is_dataclass(kind) and all(field.init for field in dataclasses.fields(kind)):
        return tuple(field.name for field in dataclasses.fields(kind))
    return None


def _class(name: str, modules: frozenset[str]) -> type | None:
    """A class of an attack that is imported already; None if there is none of this name."""
    module, _, path = name.partition(":")
    if not module.startswith(OURS) and module not in modules:
        return None
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and found.__module__ == module else None


def unpacked(tree: Any, modules: frozenset[str] = frozenset()) -> Any:
    """The value of a tree that `packed` made.

    Raises:
        Unpackable: it has a record that is not there.
    """
    if not isinstance(tree, Mapping):
        return tree
    match tree:
        case {"kind": "nothing"}:
            return NO_MEMORY
        case {"kind": "bytes", "value": Tensor() as value}:
            return value.numpy().tobytes()
        case {"kind": "tensor", "value": Tensor() as value, "device": str(device)}:
            return value.to(device)
        case {"kind": "tuple" | "list" | "deque" | "mapping" | "record" as kind, "items": list(packed)}:
            items = [unpacked(item, modules) for item in packed]
        case _:
            raise Unpackable(f"found {tree.get('kind')!r:.100} in it")
    match kind:
        case "tuple":
            return tuple(items)
        case "list":
            return items
        case "deque":
            return deque(items, maxlen=tree["most"])
        case "mapping":
            return dict(zip((unpacked(key, modules) for key in tree["keys"]), items, strict=True))
        case _:
            return _record(tree, items, modules)


def _record(tree: Mapping[str, Any], items: list[Any], modules: frozenset[str]) -> Any:
    """A named tuple or a dataclass, made of its fields."""
    made = _class(tree["class"], modules)
    if made is None or _fields(made) != tuple(tree["fields"]):
        raise Unpackable(f"found {tree['class']!r:.100} in it, which this attack does not have")
    return made(**dict(zip(tree["fields"], items, strict=True)))
