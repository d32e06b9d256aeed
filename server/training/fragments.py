"""Steps on one fragment of the parameters at a time, each with an optimizer state of its own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from varangian.protos.layout import Fragments
from varangian.protos.payloads.encoding import put, take
from varangian.server.training.optimizers import AnyStepper, Optimizer, stepper_for


class FragmentSteppers:
    """An optimizer at work on (d,) parameters, of which a step moves those of one fragment.

    Each number has been through as many steps as its fragment had rounds; a count of steps, as Adam has
    one, is that of the fragment.

    Args:
        optimizer: of the run.
        parameters: (d,), at the start.
        shapes: of the parameters of the model.
        fragments: which of them are in each fragment.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Tensor,
        shapes: Sequence[Sequence[int]] | None,
        fragments: Fragments,
    ) -> None:
        self._slices = fragments.slices
        self._steppers: list[AnyStepper] = []
        for slices, entries in zip(fragments.slices, fragments.entries, strict=True):
            own = None if shapes is None else [shapes[entry] for entry in entries]
            self._steppers.append(stepper_for(optimizer, take(parameters, slices), own))

    def rate(self, round: int, rounds: int) -> float:
        """The learning rate of a round."""
        return self._steppers[0].rate(round, rounds)

    def scored(self, scores: Mapping[str, float]) -> None:
        """Take the scores of an evaluation."""
        for stepper in self._steppers:
            stepper.scored(scores)

    def step(
        self, fragment: int, point: Tensor, gradient: Tensor, length: float, lr: float, out: Tensor
    ) -> None:
        """As `Stepper.step` with a point (d,) and the gradient of a fragment alone.

        Raises:
            AggregationError: an entry would not be finite; the optimizer is as it was before.
        """
        slices = self._slices[fragment]
        part = take(point, slices)
        moved = torch.empty_like(part)
        self._steppers[fragment].step(part, gradient, length, lr, moved)
        put(out.copy_(point), slices, moved)

    def state(self) -> list[Any]:
        """The state for resuming a run, of each fragment."""
        return [stepper.state() for stepper in self._steppers]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from a state, which is copied."""
        for stepper, own in zip(self._steppers, state, strict=True):
            stepper.restore(own)
