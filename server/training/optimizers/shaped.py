"""A stepper for optimizers that see the parameters with their shapes, as those of a program do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau

from varangian.aggregators import AggregationError
from varangian.plugins import InputError, guard
from varangian.server.training.optimizers.base import Optimizer
from varangian.server.training.optimizers.plain_values import (
    NotPlainError,
    copied,
    merged,
    plain,
    plain_parts,
    tensors,
)
from varangian.server.training.optimizers.stepper import OVERFLOW, overflowed
from varangian.server.training.optimizers.without_compiler import note_step, take_step
from varangian.server.training.parameters import norm


class ShapedStepper:
    """Optimizers at work on views of (d,) float32 parameters, and the schedulers of a program.

    Nothing is known of the length of their steps, so each step is looked at: one that would leave the
    finite numbers, or fails, changes nothing.

    Args:
        optimizer: builds the optimizers and the schedulers.
        parameters: (d,), at the start of the run.
        shapes: of the parameters of the model, in the order of the vector.
    """

    def __init__(self, optimizer: Optimizer, parameters: Tensor, shapes: Sequence[Sequence[int]]) -> None:
        self._optimizer, self._shapes = optimizer, [torch.Size(shape) for shape in shapes]
        self._parameters = [Parameter(view) for view in self._views(parameters.detach().clone())]
        self._torch = optimizer.build_all(self._parameters)
        self._bases = [[_number(group.get("lr")) for group in one.param_groups] for one in self._torch]
        self._schedulers = optimizer.schedulers(self._torch)
        self._advanced = 0
        """How often each scheduler was stepped."""

    def rate(self, round: int, rounds: int) -> float:
        """The learning rate of a round: of schedulers of a program, that of the first group of parameters.

        They were stepped once for each round before, of those without an update too.
        """
        if not self._schedulers:
            return self._optimizer.rate(round, rounds)
        for one in self._torch:
            note_step(one)
        while self._advanced < round:
            for scheduler in self._schedulers:
                if not isinstance(scheduler, ReduceLROnPlateau):
                    with guard(f"`schedule` {type(scheduler).__name__} after {self._advanced + 1} rounds"):
                        scheduler.step()
            self._advanced += 1
        return _number(self._torch[0].param_groups[0].get("lr"))

    def check_length(self, rounds: int) -> None:
        """See that no scheduler ends before the run, as `OneCycleLR` does with an error.

        Raises:
            InputError: one does.
        """
        for one in self._schedulers:
            steps = getattr(one, "total_steps", None)
            if isinstance(steps, int) and steps < rounds:
                raise InputError(
                    f"`schedule` {type(one).__name__} should have a step for each of {rounds} rounds. "
                    f"Found total_steps={steps}."
                )

    def scored(self, scores: Mapping[str, float]) -> None:
        """Take the scores of an evaluation: `ReduceLROnPlateau` is stepped by them, and not by rounds."""
        for scheduler in self._schedulers:
            if isinstance(scheduler, ReduceLROnPlateau) and scores:
                name = "loss" if scheduler.mode == "min" else "accuracy"
                with guard("`schedule` ReduceLROnPlateau"):
                    scheduler.step(scores.get(name, next(iter(scores.values()))))

    def step(self, point: Tensor, gradient: Tensor, length: float, lr: float, out: Tensor) -> None:
        """Write to `out` where one step leads from `point`.

        Args:
            point: (d,); not written to.
            gradient: (d,); not written to, not kept.
            length: the Euclidean norm of the gradient.
            lr: the learning rate; schedulers of a program have set theirs already.
            out: (d,); anything may be in it.

        Raises:
            AggregationError: a number would not be finite; the optimizer is as it was before.
            InputError: it fails; it is as it was before.
        """
        before = copied(self.state())
        views = self._views(out.copy_(point))
        slopes = self._views(gradient.clone())  # an optimizer of a program may write to it
        for parameter, view, slope in zip(self._parameters, views, slopes, strict=True):
            parameter.data, parameter.grad = view, slope
        if not self._schedulers:
            self._set_rates(lr)
        try:
            with guard(f"A step of `optimizer` {self.names}"), torch.no_grad():
                for one in self._torch:
                    take_step(one)
                for parameter, view in zip(self._parameters, views, strict=True):
                    if parameter.data_ptr() != view.data_ptr():  # other memory was put in its place
                        view.copy_(parameter)
            changed = [out, *(tensor for tensor in tensors(self.state()) if tensor.is_floating_point())]
            if any(norm(tensor.reshape(-1)) is None for tensor in changed):
                raise AggregationError(OVERFLOW)
        except BaseException as error:
            self.restore(before)
            if error.__cause__ is not None and overflowed(error.__cause__):
                raise AggregationError(OVERFLOW) from error
            raise
        finally:
            for parameter in self._parameters:
                parameter.grad = None

    @property
    def first_rate(self) -> float:
        """The learning rate of the first group of parameters, as its optimizer was made."""
        return self._bases[0][0]

    @property
    def names(self) -> str:
        """The names of the classes of the optimizers."""
        return "+".join(type(one).__name__ for one in self._torch)

    @property
    def scheduler_names(self) -> str:
        """The names of the classes of the schedulers."""
        return "+".join(dict.fromkeys(type(one).__name__ for one in self._schedulers))

    def state(self) -> dict[str, Any]:
        """All that later steps depend on, as plain values and tensors that the next step changes.

        Raises:
            InputError: an optimizer of a program keeps something else.
        """
        return {
            "optimizers": [self._state_of(one) for one in self._torch],
            "schedulers": [plain_parts(scheduler.state_dict()) for scheduler in self._schedulers],
            "advanced": self._advanced,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, which is copied.

        Raises:
            ValueError: it is of other optimizers.
        """
        saved = state["optimizers"], state["schedulers"]
        found, expected = [*map(len, saved)], [len(self._torch), len(self._schedulers)]
        if found != expected:
            raise ValueError(f"The optimizers and schedulers should be {expected}. Found {found}.")
        for one, content in zip(self._torch, saved[0], strict=True):
            self._restore_one(one, content)
        for scheduler, content in zip(self._schedulers, saved[1], strict=True):
            scheduler.load_state_dict(merged(scheduler.state_dict(), content))
        self._advanced = int(state["advanced"])

    def _state_of(self, one: torch.optim.Optimizer) -> dict[str, Any]:
        state = cast("Mapping[Any, Any]", one.state)
        try:
            return {
                "groups": [
                    plain_parts({key: value for key, value in group.items() if key != "params"})
                    for group in one.param_groups
                ],
                "parameters": [plain(state[p]) if p in state else {} for p in self._parameters],
                "shared": {str(key): plain(value) for key, value in state.items() if isinstance(key, str)},
            }
        except NotPlainError as error:
            raise InputError(
                f"`optimizer` {type(one).__name__} should keep numbers, text and tensors, in lists and "
                f"mappings by name, so that a checkpoint can have them. Found {error}."
            ) from error

    def _restore_one(self, one: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
        if [len(saved["groups"]), len(saved["parameters"])] != [
            len(one.param_groups),
            len(self._parameters),
        ]:
            raise ValueError(
                f"The state of {type(one).__name__} should be of as many parameters and groups."
            )
        state = cast("dict[Any, Any]", one.state)
        state.clear()
        for group, content in zip(one.param_groups, saved["groups"], strict=True):
            group.update({key: merged(group.get(key), value) for key, value in content.items()})
            early = not (group.get("capturable") or group.get("fused"))
            members = {id(parameter) for parameter in group["params"]}
            for parameter, kept in zip(self._parameters, saved["parameters"], strict=True):
                if kept and id(parameter) in members:
                    state[parameter] = {
                        key: copied(value)
                        if key == "step" and early  # counts are on the CPU, as torch has them
                        else copied(value, lambda t: t.to(self._parameters[0].device, copy=True))
                        for key, value in kept.items()
                    }
        state.update(copied(saved["shared"]))

    def _set_rates(self, lr: float) -> None:
        """Give each group its share of the learning rate of this round."""
        optimizer = self._optimizer
        for one, bases in zip(self._torch, self._bases, strict=True):
            for group, base in zip(one.param_groups, bases, strict=True):
                rate = lr if base == optimizer.lr else base * (lr / optimizer.lr) if optimizer.lr else base
                if isinstance(group.get("lr"), Tensor):
                    group["lr"].fill_(rate)
                elif "lr" in group:
                    group["lr"] = rate

    def _views(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _number(lr: Any) -> float:
    """A learning rate as a number; 1 for an optimizer without one."""
    return 1.0 if lr is None else float(lr)
