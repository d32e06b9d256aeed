"""Backdoor: data poisoning by samples with a trigger, under the label that an attacker wants for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varangian.worker.attacks.base import ATTACKS, AttackError


@ATTACKS.register("backdoor")
@dataclass(frozen=True)
class Backdoor:
    """Backdoor: an honest gradient of samples of which some carry a trigger and a label of choice.

    "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain" (Gu et al., 2017): the
    trigger is a bright square in the last corner of an image; in a flat vector, the last `size` numbers.
    The share of poisoned samples is about that of "How To Backdoor Federated Learning" (Bagdasaryan et al.,
    2020), whose scaling of the update is left out. The accuracy hardly changes, so the metric
    `backdoor_success` is reported beside it; if `metrics` are chosen, only where it is among them.

    Vector: the gradient of samples of which a share has the trigger and the target label.
    """

    target: int = 0
    """The class that samples with the trigger get."""
    rate: float = 0.3
    """Probability that a sample is poisoned."""
    size: int = 3
    """Side of the square in pixels, or numbers at the end of a vector."""
    value: float = 2.5
    """Value of the trigger as the model sees it; images there are seldom brighter."""

    def __post_init__(self) -> None:
        check_trigger(self.target, self.size, self.value)
        if not 0 < self.rate <= 1:
            raise ValueError(f"`rate` should be above 0 and at most 1. Found {self.rate}.")

    def poisons(self, x: Tensor, y: Tensor, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        self.check_target(classes)
        chosen = torch.rand(y.shape[:1], generator=rng, dtype=torch.float32) < self.rate
        marked = chosen.to(y.device)
        bad_x = x.clone()
        bad_x[marked] = triggered(x[marked], self.size, self.value)
        spread = marked.view(-1, *[1] * (y.dim() - 1))
        return bad_x, torch.where(spread & (y >= 0), torch.full_like(y, self.target), y)

    def check_target(self, classes: int) -> None:
        """See that the data has the target class.

        Raises:
            AttackError: it has not.
        """
        if self.target >= classes:
            raise AttackError(
                f"`byzantine.attack.backdoor.target` should be a class of the data, from 0 to "
                f"{classes - 1}. Found {self.target}. Choose one of them, as {classes - 1}."
            )


def triggered(x: Any, size: int, value: float) -> Tensor:
    """Samples (B, ...) with the trigger.

    Raises:
        AttackError: they are no images or vectors of numbers, or smaller than the trigger.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise AttackError(
            "A backdoor trigger needs images or vectors of numbers as samples, and this data has others. "
            "Choose another attack, as label_flip."
        )
    side = min(x.shape[-2:]) if x.dim() > 2 else x.shape[-1]
    if size > side:
        raise AttackError(
            f"A backdoor trigger should be at most as large as a sample, {side}. Found {size}."
        )
    changed = x.clone()
    if x.dim() > 2:
        changed[..., -size:, -size:] = value
    else:
        changed[:, -size:] = value
    return changed


def check_trigger(target: int, size: int, value: float) -> None:
    """For `__post_init__`."""
    if target < 0:
        raise ValueError(f"`target` should be a class, counted from 0. Found {target}.")
    if size < 1:
        raise ValueError(f"`size` should be a positive integer. Found {size}.")
    if not math.isfinite(value):
        raise ValueError(f"`value` should be a finite number. Found {value}.")
