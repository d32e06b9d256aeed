"""Loss on a subset of the held-out samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from varangian.plugins import call
from varangian.worker.data.samples import count
from varangian.worker.training.metrics.base import (
    METRICS,
    Evaluated,
    MetricError,
    Totals,
    check_known,
    check_labels,
)


@METRICS.register("subset_loss")
@dataclass(frozen=True)
class SubsetLoss:
    """Loss on a subset: the loss of the run on some of the held-out samples.

    They are chosen by their class, by their place, or by a function of yours: `target: module:function`,
    called with the (inputs, targets) of a batch and the `options`. It returns a boolean for each sample.
    NaN where no sample is chosen.
    """

    classes: tuple[int, ...] | None = None
    """The classes of the samples."""
    indices: tuple[int, ...] | None = None
    """Places among the held-out samples, from 0."""
    target: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    name: str | None = None
    """The name under which it is reported; null is subset_loss."""
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        given = [name for name in ("classes", "indices", "target") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"One of `classes`, `indices` and `target` should be given. Found {found}")
        if self.options and self.target is None:
            raise ValueError("`options` should stand beside a `target`, which is called with them")
        check_labels(classes=self.classes, indices=self.indices)

    @property
    def by_class(self) -> bool | None:
        return None if self.classes is None else True

    def totals(self, samples: Evaluated) -> Totals:
        chosen = self._chosen(samples)
        size = int(chosen.sum())
        if not size:
            return {"": (0.0, 0)}
        outputs, targets = (_only(part, chosen) for part in (samples.outputs, samples.targets))
        return {"": (float(samples.loss(outputs, targets)) * size, size)}

    def _chosen(self, samples: Evaluated) -> Tensor:
        """The samples of a batch that are chosen: (B,) bool."""
        size = count(samples.targets)
        if self.indices is not None:
            places = torch.arange(samples.first, samples.first + size)
            return torch.isin(places, torch.tensor(self.indices))
        if self.target is not None:
            return self._asked(samples, size)
        assert samples.classes is not None
        check_known("subset_loss", self.classes or (), samples.classes)
        if not isinstance(samples.targets, Tensor) or samples.targets.dim() != 1:
            raise MetricError("`metrics` subset_loss by `classes` needs one class for each sample.")
        return torch.isin(samples.targets.cpu(), torch.tensor(self.classes))

    def _asked(self, samples: Evaluated, size: int) -> Tensor:
        assert self.target is not None
        given = {"inputs": samples.inputs, "targets": samples.targets}
        found = torch.as_tensor(call("metrics", self.target, given, self.options, MetricError)).cpu()
        if found.shape != (size,) or found.dtype != torch.bool:
            raise MetricError(
                f"`metrics` {self.target!r} should return a boolean for each of {size} samples. Found "
                f"{found.dtype} of shape {list(found.shape)}."
            )
        return found


def _only(part: Any, chosen: Tensor) -> Any:
    """The chosen samples of outputs or targets."""
    return tree_map(lambda leaf: leaf[chosen.to(leaf.device)] if isinstance(leaf, Tensor) else leaf, part)
