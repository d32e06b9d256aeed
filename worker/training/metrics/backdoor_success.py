"""Success rate of a backdoor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from varangian.worker.attacks.backdoor import Backdoor, check_trigger, triggered
from varangian.worker.training.losses import by_place
from varangian.worker.training.metrics.base import METRICS, Evaluated, Totals, check_known


@METRICS.register("backdoor_success")
@dataclass(frozen=True)
class BackdoorSuccess:
    """Success rate of a backdoor: the share of held-out samples that get the target class with the trigger.

    Samples that are of this class anyway do not count. Where the attack of the run is `backdoor`, it has
    the same trigger and target unless it says otherwise.
    """

    target: int | None = None
    """The class that the attacker wants; null is that of the attack."""
    size: int | None = None
    """Side of the square of the trigger; null is that of the attack."""
    value: float | None = None
    """Value of the trigger; null is that of the attack."""
    name: str | None = None
    """The name under which it is reported; null is backdoor_success."""
    by_class: ClassVar[bool | None] = True
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        attack = self._attack(Backdoor())
        check_trigger(attack.target, attack.size, attack.value)

    def of(self, attack: Backdoor) -> BackdoorSuccess:
        """The same metric with what it does not say itself from an attack."""
        known = self._attack(attack)
        return replace(self, target=known.target, size=known.size, value=known.value)

    def changed(self, inputs: Any) -> Tensor:
        attack = self._attack(Backdoor())
        return triggered(inputs, attack.size, attack.value)

    def totals(self, samples: Evaluated) -> Totals:
        scores, labels = by_place(samples.outputs, samples.targets, "With `metrics` backdoor_success")
        assert samples.classes is not None
        target = self._attack(Backdoor()).target
        check_known("backdoor_success", [target], samples.classes)
        counted = (labels >= 0) & (labels != target)
        wrong = (scores.argmax(dim=1) == target) & counted
        return {"": (int(wrong.sum()), int(counted.sum()))}

    def _attack(self, attack: Backdoor) -> Backdoor:
        given = {name: getattr(self, name) for name in ("target", "size", "value")}
        return replace(attack, **{name: value for name, value in given.items() if value is not None})
