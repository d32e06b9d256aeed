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

from varangian.protos.layout import Fragments
from varangian.protos.payloads.encoding import put, take
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
    point: Tensor | None = None
    """The worker's parameters, where only those of a fragment are replaced by the server's."""


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
        fragments: into which the parameters are split. A worker then goes on from its own, with those of
            the server in the fragments of the rounds since its last one.
    """

    def __init__(
        self,
        inner: InnerOptimizer,
        steps: int,
        rounds: int,
        device: torch.device | str = "cpu",
        buffers: int = 0,
        fragments: Fragments | None = None,
    ) -> None:
        self._buffers = buffers
        self._inner, self._steps, self._rounds, self._fragments = inner, steps, rounds, fragments
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
        memory = self._memories.get(name)
        whole = self._begin(round, start, memory)
        point = torch.nn.Parameter(whole[:d])
        optimizer = self._inner.build(point)
        if memory is not None:
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
            # Another object each time, so that nobody takes it for the parameters that were set last.
            write_gradient(row, step, whole.detach())
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
        kept = None if self._fragments is None else point.detach().cpu()
        self._memories[name] = Memory(round, state, kept)
        return found

    def _begin(self, round: int, start: Tensor, memory: Memory | None) -> Tensor:
        """Where a worker begins a round, given the server's parameters; a copy."""
        if self._fragments is None or memory is None or memory.point is None:
            return start.clone()
        own = memory.point.to(self._device, copy=True)
        for fragment in self._fragments.changed(memory.round, round):
            slices = self._fragments.slices[fragment]
            put(own, slices, take(start, slices))
        return own

    def state(self, name: str) -> Tree:
        """The history of a worker, for `restore`; its tensors are not copied, and never written to."""
        memory = self._memories.get(name)
        if memory is None:
            return None
        return {"round": memory.round, "state": memory.state, "point": memory.point}

    def restore(self, name: str, tree: Any) -> None:
        """Put the history of a worker back; None forgets it."""
        self._memories.pop(name, None)
        if tree is not None:
            self._memories[name] = Memory(tree["round"], dict(tree["state"]), tree.get("point"))
