"""A stepper: an optimizer whose steps depend on the numbers alone, at work on the flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from varangian.aggregators import AggregationError
from varangian.server.training.optimizers.base import LARGEST, Bounds, Optimizer
from varangian.server.training.parameters import norm

BOUND = "bound"
"""The name of `Bounds.memory` in a state."""
OVERFLOW = "The step would make the parameters infinite."
State: TypeAlias = dict[str, Tensor | float]


class Stepper:
    """An optimizer at work on (d,) float32 parameters, with what it remembers from step to step.

    A step that would leave the finite numbers changes nothing.
    """

    def __init__(self, optimizer: Optimizer, d: int, device: torch.device | str = "cpu") -> None:
        self._optimizer = optimizer
        self._parameter = torch.nn.Parameter(torch.empty(d, dtype=torch.float32, device=device))
        self._torch = optimizer.build(self._parameter)
        self._bounds = Bounds(math.inf)

    def rate(self, round: int, rounds: int) -> float:
        """The learning rate of a round."""
        return self._optimizer.rate(round, rounds)

    def scored(self, scores: Mapping[str, float]) -> None:
        """Take the scores of an evaluation, which no named schedule depends on."""

    def step(self, point: Tensor, gradient: Tensor, length: float, lr: float, out: Tensor) -> None:
        """Write to `out` where one step leads from `point`.

        Args:
            point: (d,); not written to.
            gradient: (d,); not written to, not kept.
            length: the Euclidean norm of the gradient.
            lr: the learning rate.
            out: (d,); anything may be in it.

        Raises:
            AggregationError: an entry would not be finite; the optimizer is as it was before.
        """
        bounds = self._optimizer.after(self._bounds, length, lr)
        if self._risky(bounds):
            measured = Bounds(_norm(point), self._bounds.memory)
            bounds = self._optimizer.after(measured, length, lr)
        risky = self._risky(bounds)
        before = _copies(self.state()) if risky else {}
        self._parameter.data, self._parameter.grad = out.copy_(point), gradient
        self._torch.param_groups[0]["lr"] = lr
        try:
            with torch.no_grad():
                self._torch.step()
            finite = not risky or all(math.isfinite(_norm(vector)) for vector in (out, *self._vectors()))
        except (RuntimeError, OverflowError) as error:
            if not (risky and overflowed(error)):
                raise
            finite = False
        self._parameter.grad = None
        if not finite:
            self.restore(before)
            raise AggregationError(OVERFLOW)
        self._bounds = bounds

    def state(self) -> State:
        """The state for resuming a run, by name; the tensors are those that the next step changes."""
        return {**self._torch.state[self._parameter], BOUND: self._bounds.memory}

    def restore(self, state: Mapping[str, Tensor | float]) -> None:
        """Go on from a state, which is copied."""
        memory = _copies(state)
        self._bounds = Bounds(math.inf, float(memory.pop(BOUND)))
        self._torch.state[self._parameter] = {
            name: self._placed(name, value) for name, value in memory.items()
        }

    def _placed(self, name: str, value: Tensor | float) -> Tensor | float:
        """A part of the state where torch has it: on the device, but for the counts of plain steps."""
        if not isinstance(value, Tensor) or (name == "step" and "fused" not in self._optimizer.options):
            return value
        return value.to(self._parameter.device)

    def _vectors(self) -> list[Tensor]:
        return [v for v in self.state().values() if isinstance(v, Tensor) and v.dim()]

    def _risky(self, bounds: Bounds) -> bool:
        """Whether an entry may not be finite."""
        return not (bounds.point < LARGEST and bounds.memory < self._optimizer.longest)


def overflowed(error: BaseException) -> bool:
    """Whether a step of torch has failed since a number that it computes on the way is too large."""
    return isinstance(error, OverflowError) or "overflow" in str(error)


def _norm(vector: Tensor) -> float:
    found = norm(vector)
    return math.inf if found is None else found


def _copies(state: Mapping[str, Tensor | float]) -> State:
    return {name: v.clone() if isinstance(v, Tensor) else v for name, v in state.items()}
