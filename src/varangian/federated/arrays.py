"""Models as arrays by name: their layout, what is wrong with one, and the flat vector that rules work on.

d  numbers of all arrays of a floating point type; arrays of integers and booleans are apart
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.protos.text import quote

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Field:
    """One array of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype.name in FLOATS

    def problem(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
        """What is wrong with an array of this name; None where nothing is."""
        if shape != self.shape:
            return f"{quote(self.name)} should have the shape {self.shape}. Found {_short(shape)}"
        if dtype != self.dtype:
            return f"{quote(self.name)} should be {self.dtype}. Found {str(dtype)[:40]}"
        return None


def _short(shape: Sequence[int]) -> str:
    return str(tuple(shape)) if len(shape) <= 8 else f"{len(shape)} dimensions"


@dataclass(frozen=True)
class Layout:
    """The arrays that every model of a round has."""

    fields: tuple[Field, ...]

    @classmethod
    def of(cls, arrays: Arrays) -> Layout:
        """The layout of the operator's own model.

        Raises:
            ValueError: it has no numbers to train, or an array of a type that cannot be aggregated.
        """
        for name, array in arrays.items():
            native = array.dtype.isnative and array.dtype.kind in "fiub"
            if not native or (array.dtype.kind == "f" and array.dtype.name not in FLOATS):
                known = ", ".join(FLOATS)
                raise ValueError(
                    f"arrays.{name}: should be {known}, integers or booleans, in the order of bytes here. "
                    f"Found {array.dtype}."
                )
        layout = cls(tuple(Field(name, array.shape, array.dtype) for name, array in arrays.items()))
        if layout.d == 0:
            raise ValueError("arrays: should hold numbers of a floating point type. Found none.")
        return layout

    @cached_property
    def floats(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if field.is_float)

    @cached_property
    def others(self) -> tuple[Field, ...]:
        """Arrays of integers and booleans, such as counts of batches."""
        return tuple(field for field in self.fields if not field.is_float)

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        return {field.name: field for field in self.fields}

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Numbers of each floating point array."""
        return tuple(field.size for field in self.floats)

    @cached_property
    def d(self) -> int:
        return sum(self.blocks)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the vectors: float64 where an array is, else float32."""
        wide = any(field.dtype == np.float64 for field in self.floats)
        return torch.float64 if wide else torch.float32

    def wrong_names(self, names: Iterable[str]) -> str | None:
        """What is wrong with the names of the arrays of a model; None where nothing is."""
        found = set(names)
        missing, extra = self.by_name.keys() - found, found - self.by_name.keys()
        if missing:
            return f"lacks the array {quote(min(missing))}{_more(missing)}"
        if extra:
            return f"has an array {quote(min(extra))} that was not asked for{_more(extra)}"
        return None

    def problem(self, arrays: Arrays) -> str | None:
        """What is wrong with a model that a client has sent; None where its layout is this one."""
        if wrong := self.wrong_names(arrays):
            return wrong
        each = (field.problem(arrays[field.name].shape, arrays[field.name].dtype) for field in self.fields)
        return next((problem for problem in each if problem), None)

    def write(self, vector: Tensor, arrays: Arrays, base: Arrays | None) -> None:
        """Write the difference of a model from `base` into a vector (d,); the model itself without one."""
        target, at = vector.numpy(), 0
        with np.errstate(all="ignore"):
            for field in self.floats:
                part = target[at : at + field.size]
                part[:] = arrays[field.name].reshape(-1)
                if base is not None:
                    part -= base[field.name].reshape(-1)
                at += field.size

    def read(self, vector: Tensor, base: Arrays | None) -> dict[str, NDArray[Any]]:
        """The floating point arrays of `base` plus a vector; of the vector itself without a base."""
        source, at = vector.numpy(), 0
        found: dict[str, NDArray[Any]] = {}
        with np.errstate(all="ignore"):
            for field in self.floats:
                part = source[at : at + field.size].reshape(field.shape)
                whole = part if base is None else part + base[field.name]
                found[field.name] = np.asarray(whole, dtype=field.dtype).reshape(field.shape).copy()
                at += field.size
        return found

    def middle(self, models: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
        """The coordinate-wise median of the floating point arrays: the lower middle."""
        return self._medians(self.floats, models)

    def medians(self, models: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
        """The median of each number of the arrays that are not floats: the lower middle, of their type."""
        return self._medians(self.others, models)

    def _medians(self, fields: Sequence[Field], models: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
        if not models:
            return {}
        middle = (len(models) - 1) // 2
        found: dict[str, NDArray[Any]] = {}
        for field in fields:
            stacked = np.stack([model[field.name] for model in models])
            found[field.name] = np.asarray(np.partition(stacked, middle, axis=0)[middle]).reshape(
                field.shape
            )
        return found


def _more(names: Iterable[str]) -> str:
    count = len([*names])
    return f", and {count - 1} more" if count > 1 else ""


def median(values: Sequence[float]) -> float:
    """The median of those that are finite; NaN where none is."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return math.nan
    half = len(finite) // 2
    return finite[half] if len(finite) % 2 else finite[half - 1] / 2 + finite[half] / 2


Number: TypeAlias = "int | float"


def median_metrics(
    records: Sequence[Mapping[str, Number | Sequence[Number]]],
) -> dict[str, float | list[float]]:
    """The median of each metric that more than half of the clients report in the same form.

    A form is one number, or a list of so many. Numbers that are not finite are left out, and so no client
    decides by itself what is reported.
    """
    forms: dict[str, dict[int, list[list[float]]]] = {}
    for record in records:
        for key, value in record.items():
            if isinstance(value, str | bytes):
                continue
            values = value if isinstance(value, Sequence) else (value,)
            form = len(values) if isinstance(value, Sequence) else -1
            try:
                numbers = [float(one) for one in values]
            except (OverflowError, TypeError, ValueError):
                continue
            forms.setdefault(key, {}).setdefault(form, []).append(numbers)
    found: dict[str, float | list[float]] = {}
    for key, by_form in forms.items():
        for form, reported in by_form.items():
            if 2 * len(reported) > len(records):
                middles = [median(column) for column in zip(*reported, strict=True)]
                found[key] = middles[0] if form == -1 else middles
    return found
