"""Mean absolute error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from varangian.worker.training.losses import match_shape
from varangian.worker.training.metrics.base import METRICS, Evaluated, Totals


@METRICS.register("mae")
@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean absolute error."""

    by_class: ClassVar[bool | None] = False
    whole: ClassVar[bool] = False

    def totals(self, samples: Evaluated) -> Totals:
        gaps = (match_shape(samples.outputs, samples.targets) - samples.targets).abs().double()
        return {"": (float(gaps.sum()), gaps.numel())}
