"""States of optimizers and schedulers as plain values and tensors, as a checkpoint has them, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class NotPlainError(TypeError):
    """A value that no checkpoint can have; the text is its place and type."""


def plain(value: Any, place: str = "") -> Any:
    """A value as numbers, text, tensors, lists and mappings by text; other mappings are lists of pairs.

    Raises:
        NotPlainError: it has something else in it.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            return value.detach()
        case np.generic():
            return value.item()
        case Mapping():
            items = [(key, plain(inner, f"{place}.{key}")) for key, inner in value.items()]
            if all(_is_name(key) for key, _ in items):
                return dict(items)
            return [[plain(key, place), inner] for key, inner in items]
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return [plain(inner, f"{place}.{index}") for index, inner in enumerate(value)]
        case _:
            raise NotPlainError(f"{place.removeprefix('.')} ({type(value).__name__})")


def plain_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a mapping that can be plain; others, as functions, come from the program again."""
    found = dict[str, Any]()
    for name, value in values.items():
        try:
            found[name] = plain_parts(value) if _by_names(value) else plain(value)
        except NotPlainError:
            continue
    return found


def merged(now: Any, saved: Any) -> Any:
    """A value of a state as the program has it, with what `plain` has saved of it."""
    match now, saved:
        case Mapping(), Mapping():
            return _filled(now, {**now, **{key: merged(now.get(key), saved[key]) for key in saved}})
        case Mapping(), list():
            return _filled(now, {key: merged(now.get(key), value) for key, value in saved})
        case tuple() | list(), list() if not hasattr(now, "_fields"):
            before = [*now, *[None] * len(saved)]
            return type(now)(merged(*pair) for pair in zip(before, saved, strict=False))
        case Tensor(), Tensor():
            return saved.to(now.device, copy=True)
        case _, Tensor():
            return saved.clone()
        case _:
            return saved


def copied(value: Any, place: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """A copy of a plain value, with what `place` makes of each tensor."""
    match value:
        case Tensor():
            return place(value)
        case Mapping():
            return {key: copied(inner, place) for key, inner in value.items()}
        case list():
            return [copied(inner, place) for inner in value]
        case _:
            return value


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a plain value."""
    match value:
        case Tensor():
            return [value]
        case Mapping():
            return [tensor for inner in value.values() for tensor in tensors(inner)]
        case list():
            return [tensor for inner in value for tensor in tensors(inner)]
        case _:
            return []


def _is_name(key: object) -> bool:
    return isinstance(key, str) and not key.startswith("$")


def _by_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(_is_name, value))


def _filled(like: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    """A mapping of the same type with this content."""
    if type(like) is dict:
        return content
    made: Any = copy.copy(like)
    made.clear()
    made.update(content)
    return made
