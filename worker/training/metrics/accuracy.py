"""Accuracy, of all samples and of each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from varangian.worker.data.base import IGNORED
from varangian.worker.training.losses import by_place
from varangian.worker.training.metrics.base import METRICS, Evaluated, Totals, check_known, check_labels


@METRICS.register("accuracy")
@dataclass(frozen=True)
class Accuracy:
    """Accuracy: the share of labels that have the highest score, from 0 to 1."""

    by_class: ClassVar[bool | None] = True
    whole: ClassVar[bool] = False

    def totals(self, samples: Evaluated) -> Totals:
        scores, labels = by_place(samples.outputs, samples.targets, "With `metrics` accuracy")
        counted = labels != IGNORED
        right = (scores.argmax(dim=1) == labels) & counted
        return {"": (int(right.sum()), int(counted.sum()))}


@METRICS.register("class_accuracy")
@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of each class: of the labels of a class, the share that has the highest score.

    One value for each class, as class_accuracy_0; NaN for a class without held-out samples.
    """

    classes: tuple[int, ...] | None = None
    """The classes that are reported; null is all of them."""
    name: str | None = None
    """The name under which it is reported; null is class_accuracy."""
    by_class: ClassVar[bool | None] = True
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_labels(classes=self.classes)

    def totals(self, samples: Evaluated) -> Totals:
        scores, labels = by_place(samples.outputs, samples.targets, "With `metrics` class_accuracy")
        assert samples.classes is not None
        check_known("class_accuracy", self.classes or (), samples.classes)
        right = scores.argmax(dim=1) == labels
        chosen = range(samples.classes) if self.classes is None else self.classes
        counts = torch.bincount(labels[labels >= 0], minlength=samples.classes).tolist()
        hits = torch.bincount(labels[right], minlength=samples.classes).tolist()
        return {str(label): (hits[label], counts[label]) for label in chosen}
