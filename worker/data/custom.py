"""Data that the user brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from varangian.worker.custom import resolve
from varangian.worker.data.base import DATASETS, DataError, Dataset


@DATASETS.register("custom")
@dataclass(frozen=True)
class Custom:
    """A data set of your own: `target: module:function`, called with (**options).

    The function returns a `Dataset`, or (train_x, train_y, test_x, test_y) as tensors or arrays. It must
    return the same samples in every process.
    """

    target: str
    options: Mapping[str, object] = field(default_factory=dict)

    def load(self) -> Dataset:
        try:
            made = resolve(self.target)(**self.options)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"custom: {self.target!r} gave no data: {error}") from error
        if isinstance(made, Dataset):
            return made
        if not isinstance(made, tuple) or len(made) != 4:
            found = type(made).__name__
            raise DataError(
                f"custom: {self.target!r} should return a Dataset, or (train_x, train_y, test_x, test_y)."
                f" Found {found}."
            )
        return dataset(self.target, *made)


def dataset(name: str, train_x: Any, train_y: Any, test_x: Any, test_y: Any) -> Dataset:
    """From four arrays: samples become float32, except bytes, which are scaled from 0..255 to 0..1."""
    xs = [torch.as_tensor(x) for x in (train_x, test_x)]
    xs = [x if x.dtype == torch.uint8 else x.float() for x in xs]
    ys = [torch.as_tensor(y).long() for y in (train_y, test_y)]
    if not ys[0].numel():
        raise DataError(f"custom: {name!r} should return training samples. Found none.")
    return Dataset(name, int(ys[0].max()) + 1, xs[0], ys[0], xs[1], ys[1], scale=(255.0,))
