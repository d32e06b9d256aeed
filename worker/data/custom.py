"""Data sets of the user, by the name of a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from varangian.plugins import call, guard
from varangian.worker.data.base import DATASETS, DataError, Dataset, check_classes
from varangian.worker.data.samples import Samples, convert, map_tensors, tensors

Bytes: TypeAlias = Literal["images", "images_last", "integers"]
PARTS = ("train_x", "train_y", "test_x", "test_y")
COLOURS = (1, 3, 4)
"""Numbers of channels that an image may have: grey, RGB, RGBA."""
ADVICE = "Return tensors, arrays of numbers, or tuples or mappings of them."
SAY = "data.custom.uint8: images, images_last (channels last) or integers (token ids)"


@DATASETS.register("custom")
@dataclass(frozen=True)
class Custom:
    """A data set of your own: `target: module:function`, called with (**options).

    The function returns a `Dataset`, or (train_x, train_y, test_x, test_y) as tensors or arrays, or as
    tuples or mappings of them. Where `partition` deals samples out, it must return the same everywhere.
    """

    target: str
    options: Mapping[str, object] = field(default_factory=dict)
    classes: int | None = None
    """The number of classes; null is the largest label of the training samples and one. A worker whose
    own data has fewer takes the number of the server."""
    uint8: Bytes | None = None
    """Meaning of uint8 inputs: `images` (channels first) and `images_last` (channels last) are scaled from
    0..255 to 0..1, `integers` stay integers. null takes what is clearly an image and refuses the rest."""

    def __post_init__(self) -> None:
        check_classes(self.classes)

    def load(self) -> Dataset:
        made = call("data", self.target, {}, self.options, DataError)
        if not isinstance(made, Dataset):
            if not isinstance(made, tuple | list) or len(made) != len(PARTS):
                raise DataError(
                    f"custom: {self.target!r} should return a Dataset, or (train_x, train_y, test_x, "
                    f"test_y). Found {describe_value(made)}."
                )
            train_x, train_y, test_x, test_y = made
            made = dataset_of(self.target, train_x, train_y, test_x, test_y, self.uint8)
        return made if self.classes is None else replace(made, classes=self.classes)


@DATASETS.register("own")
@dataclass(frozen=True)
class Own:
    """The samples of workers that are programs of their own, in a run of `varangian.Server`."""

    def load(self) -> Dataset:
        raise DataError(
            "`data` own: the model and the samples of this run are in programs. Only the one that has "
            "served it goes on with it, by varangian.Server(...).serve(..., resume=FOLDER)."
        )


def describe_value(made: Any) -> str:
    counted = f" of {len(made)}" if isinstance(made, tuple | list) else ""
    return f"{type(made).__name__}{counted}"


def dataset_of(
    name: str, train_x: Any, train_y: Any, test_x: Any, test_y: Any, uint8: Bytes | None = None
) -> Dataset:
    """From four arrays, or tuples or mappings of arrays."""
    found = dict[str, Samples]()
    for part, value in zip(PARTS, (train_x, train_y, test_x, test_y), strict=True):
        with guard(f"custom: {name!r}: reading {part} as tensors", ADVICE, name, DataError):
            found[part] = convert(value)
        if part.endswith("x"):
            found[part] = map_tensors(
                found[part], partial(interpret_bytes, f"custom: {name!r}: {part}", uint8)
            )
    inputs = [tensor for part in ("train_x", "test_x") for _, tensor in tensors(found[part])]
    scaled = any(tensor.dtype == torch.uint8 for tensor in inputs)
    x, y, held_x, held_y = (found[part] for part in PARTS)
    return Dataset(f"custom: {name!r}", None, x, y, held_x, held_y, scale=(255.0,) if scaled else None)


def interpret_bytes(here: str, uint8: Bytes | None, x: Tensor) -> Tensor:
    """Inputs converted according to the meaning of uint8; other inputs stay."""
    if x.dtype != torch.uint8:
        return x
    shape = list(x.shape[1:])
    last = x.dim() == 4 and shape[-1] in COLOURS
    clear = x.dim() == 4 and shape[0] in COLOURS and (not last or shape[1] == shape[2])
    if uint8 == "integers":
        return x.long()
    if uint8 == "images_last":
        if x.dim() != 4:
            raise DataError(f"{here} should be images (height, width, channels). Found {shape}.")
        return x.permute(0, 3, 1, 2).contiguous()
    if uint8 is None and not clear:
        guess = "looks like images with the channels last" if last else "may be images or token ids"
        raise DataError(f"{here} holds uint8 samples of shape {shape}, which {guess}. Say which in {SAY}.")
    return x
