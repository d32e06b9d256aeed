"""Attack success rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from varangian.worker.training.losses import by_place
from varangian.worker.training.metrics.base import METRICS, Evaluated, Totals, check_known, check_labels


@METRICS.register("attack_success")
@dataclass(frozen=True)
class AttackSuccess:
    """Attack success rate: the share of held-out samples of a class that get the class an attacker wants.

    Without settings it is that of `label_flip`: of the samples of class y, those that are taken for class
    C - 1 - y of C classes. A class that is its own target does not count.
    """

    source: int | None = None
    """The class of the samples; null with a `target` is every other class."""
    target: int | None = None
    """The class that the attacker wants for them; null is that of `label_flip`."""
    name: str | None = None
    """The name under which it is reported; null is attack_success."""
    by_class: ClassVar[bool | None] = True
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_labels(source=self.source, target=self.target)
        if self.source is not None and self.target is None:
            raise ValueError("`target` should be given with `source`: the class that the attacker wants")
        if self.target is not None and self.source == self.target:
            raise ValueError(
                f"`target` should be another class than `source`. Found {self.target} for both."
            )

    def totals(self, samples: Evaluated) -> Totals:
        scores, labels = by_place(samples.outputs, samples.targets, "With `metrics` attack_success")
        assert samples.classes is not None
        known = [label for label in (self.source, self.target) if label is not None]
        check_known("attack_success", known, samples.classes)
        target = (
            samples.classes - 1 - labels if self.target is None else torch.full_like(labels, self.target)
        )
        attacked = (labels >= 0) & (labels != target)
        if self.source is not None:
            attacked &= labels == self.source
        wrong = (scores.argmax(dim=1) == target) & attacked
        return {"": (int(wrong.sum()), int(attacked.sum()))}
