"""Local steps with an inner optimizer, which keeps its state from round to round.

"DiLoCo: Distributed Low-Communication Training of Language Models" (Douillard et al., 2023): a worker takes
H steps of its optimizer from the model x to y and sends the pseudo-gradient x - y. It is not divided by a
learning rate: the length of the steps is the inner optimizer's, and a server that steps by 1 along the mean
goes to the average of where the workers ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from varangian.state_file import Tree
from varangian.worker.training.flat import DIVERGED, DivergedError, check_finite

WriteGradient = Callable[[Tensor, int, Tensor], None]
"""Writes to (d,) the gradient of a step, 0, 1, ... of the round, at a point (d,); all on the device."""


class InnerOptimizer(Protocol):
    """An optimizer of local steps, with its schedule."""

    def rate(self, step: int, steps: int, /) -> float:
        """The learning rate of a step, of so many in the whole run."""
        ...

    def build(self, parameter: Tensor, /) -> torch.optim.Optimizer:
        """The optimizer of torch for one vector of parameters."""
        ...


@dataclass(frozen=True, eq=False)
class Memory:
    """What the optimizer of a worker knows after a round."""

    round: int
    state: dict[str, Tensor | float]
    """On the CPU; never written to."""


class InnerSteps:
    """The inner optimizers of workers.

    A schedule goes by the round, `round * steps + step`, so rounds that a worker misses do not hold it up;
    the moments of an optimizer are those of the steps that the worker took.

    Args:
        inner: the optimizer.
        steps: H, that a worker takes in a round.
        rounds: of the run, for the schedule.
        device: where steps are taken.
        buffers: how many numbers at the end of a vector are buffers, which no optimizer moves.
    """

    def __init__(
        self,
        inner: InnerOptimizer,
        steps: int,
        rounds: int,
        device: torch.device | str = "cpu",
        buffers: int = 0,
    ) -> None:
        self._buffers = buffers
        self._inner, self._steps, self._rounds = inner, steps, rounds
        self._device = torch.device(device)
        self._memories: dict[str, Memory] = {}

    def __call__(self, name: str, round: int, parameters: Tensor, write_gradient: WriteGradient) -> Tensor:
        """The pseudo-gradient of a worker in a round, (d,) on the CPU; asked for once for each round.

        Raises:
            DivergedError: it is not finite, or the optimizer's state is not. The state stays what it was,
                as for any error of `write_gradient`.
        """
        start = parameters.to(self._device)
        d = start.numel() - self._buffers
        whole = start.clone()
        point = torch.nn.Parameter(whole[:d])
        optimizer = self._inner.build(point)
        if (memory := self._memories.get(name)) is not None:
            on_device = any(optimizer.defaults.get(name) for name in ("fused", "capturable"))
            optimizer.state[point] = {
                key: value.to(self._device if value.dim() or on_device else "cpu", copy=True)
                if isinstance(value, Tensor)
                else value
                for key, value in memory.state.items()
            }
        row = torch.empty_like(start)
        gradient = row[:d]
        for step in range(self._steps):
            write_gradient(row, step, whole)
            whole[d:] = row[d:]
            place, steps = round * self._steps + step, self._rounds * self._steps
            optimizer.param_groups[0]["lr"] = self._inner.rate(place, steps)
            point.grad = gradient
            with torch.no_grad():
                optimizer.step()
        found = torch.cat([start[:d] - point.detach(), whole[d:]]).cpu()
        check_finite(found)
        state = {
            key: value.detach().cpu() if isinstance(value, Tensor) else value
            for key, value in optimizer.state[point].items()
        }
        if not all(bool(v.isfinite().all()) for v in state.values() if isinstance(v, Tensor)):
            raise DivergedError(DIVERGED)
        self._memories[name] = Memory(round, state)
        return found

    def state(self, name: str) -> Tree:
        """The history of a worker, for `restore`; its tensors are not copied, and never written to."""
        memory = self._memories.get(name)
        return None if memory is None else {"round": memory.round, "state": memory.state}

    def restore(self, name: str, tree: Any) -> None:
        """Put the history of a worker back; None forgets it."""
        self._memories.pop(name, None)
        if tree is not None:
            self._memories[name] = Memory(tree["round"], dict(tree["state"]))
