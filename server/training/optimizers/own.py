"""The optimizer and the learning rate scheduler of a program, in the place of named ones."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from varangian.plugins import InputError, guard
from varangian.registry import ConfigError, Problem
from varangian.server.training.optimizers.base import OPTIMIZERS, NotNegative, Optimizer
from varangian.server.training.optimizers.plain_values import tensors
from varangian.server.training.optimizers.shaped import ShapedStepper
from varangian.server.training.optimizers.without_compiler import without_compiler
from varangian.server.training.schedules import Schedule

OptimizerFactory: TypeAlias = Callable[
    [list[Parameter]], "torch.optim.Optimizer | Sequence[torch.optim.Optimizer]"
]
"""From the parameters of the model, with their shapes and in their order, to what steps them."""
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], Any]
"""From an optimizer to a scheduler of `torch.optim.lr_scheduler`."""
SHOWN, LONGEST = 20, 300
"""Groups of parameters that are described, and characters about each."""
BETWEEN = 3
"""Vectors that a step takes for itself: its copy of the gradient, and those between."""


@OPTIMIZERS.register("own")
@dataclass(frozen=True, kw_only=True)
class OwnOptimizer(Optimizer):
    """The optimizer of a program, as it gave it to `varangian.Server`; a file cannot name one.

    Its settings are what reports show of it. `OwnOptimizer.of` makes one that can take steps.
    """

    shaped = True
    lr: NotNegative = 1.0
    """Learning rate of its first group of parameters, at the start."""
    optimizer: str = ""
    """Its class."""
    scheduler: str = ""
    """The class of its scheduler, if it has one of torch."""
    groups: tuple[str, ...] = ()
    """The settings of each group of its parameters, at the start."""
    build_with: Any = field(init=False, default=None, compare=False, repr=False)
    """An `OptimizerFactory`, or a named optimizer."""
    schedule_with: Any = field(init=False, default=None, compare=False, repr=False)
    """A `SchedulerFactory`, if there is one."""
    measured: int = field(init=False, default=0, compare=False, repr=False)
    """As `vectors`."""

    @classmethod
    def of(
        cls,
        optimizer: OptimizerFactory | Optimizer,
        shapes: Sequence[Sequence[int]],
        *,
        scheduler: SchedulerFactory | None = None,
        schedule: Schedule | None = None,
        warmup: int = 0,
        rounds: int = 0,
    ) -> OwnOptimizer:
        """One that can take steps; it has taken one of zeros, so that errors come before the run.

        Args:
            optimizer: called with the parameters, twice; several optimizers may share them. Or a named one.
            shapes: of the parameters of the model, as `Layout` has them.
            scheduler: called with each optimizer, and stepped once a round; `ReduceLROnPlateau` is stepped
                at each evaluation, by the loss, or by the accuracy with `mode="max"`.
            schedule: a named one in its place: a factor of every group's learning rate.
            warmup: rounds over which these rates rise, before those of the schedule.
            rounds: of the run, for schedulers with a number of steps of their own; 0 asks for none.

        Raises:
            InputError: it cannot be used.
        """
        if scheduler is not None and (schedule is not None or warmup):
            raise InputError("`schedule` should be a function or a named schedule. Found both.")
        d = sum(math.prod(shape) for shape in shapes)
        zeros = torch.zeros(d, dtype=torch.float32)
        trial = cls._made(optimizer, scheduler)
        stepper = ShapedStepper(trial, zeros, shapes if trial.needs_shapes else [(d,)])
        stepper.check_length(rounds)
        stepper.step(zeros, zeros, 0.0, stepper.rate(0, 1), torch.empty_like(zeros))
        optimizers = stepper.state()["optimizers"]
        kept = sum(tensor.numel() * tensor.element_size() for tensor in tensors(optimizers))
        named = {} if schedule is None else {"schedule": schedule}
        groups = tuple(_shown(group) for one in optimizers for group in one["groups"][:SHOWN])
        of = cls._made(
            optimizer, scheduler, lr=stepper.first_rate, optimizer=stepper.names, warmup=warmup, **named,
            scheduler="" if scheduler is None else stepper.scheduler_names, groups=groups,
        )  # fmt: skip
        object.__setattr__(of, "measured", 2 * math.ceil(kept / (4 * d)) + BETWEEN)
        return of

    @classmethod
    def _made(cls, build_with: Any, schedule_with: Any, **settings: Any) -> OwnOptimizer:
        made = cls(**settings)
        object.__setattr__(made, "build_with", build_with)
        object.__setattr__(made, "schedule_with", schedule_with)
        return made

    @property
    def needs_shapes(self) -> bool:
        """Whether it sees the parameters with their shapes; most named ones see one vector."""
        return not isinstance(self.build_with, Optimizer) or self.build_with.shaped

    @property
    def vectors(self) -> int:
        return self.measured

    def build_all(self, parameters: Sequence[Parameter]) -> Sequence[torch.optim.Optimizer]:
        if self.build_with is None:
            rule = "should be the optimizer of a program, which gives it to `varangian.Server` again"
            raise ConfigError([Problem("optimizer.name", rule, "own")])
        if isinstance(self.build_with, Optimizer):
            return self.build_with.build_all(parameters)
        with without_compiler(), guard("`optimizer`"):
            found: Any = self.build_with([*parameters])
        many: list[Any] = [*found] if isinstance(found, list | tuple) else [found]
        for one in many:
            _check(one, parameters)
        return many

    def schedulers(self, optimizers: Sequence[torch.optim.Optimizer]) -> Sequence[Any]:
        if self.schedule_with is None:
            return []
        with guard("`schedule`"):
            found = [self.schedule_with(one) for one in optimizers]
        for one in found:
            if not all(hasattr(one, method) for method in ("step", "state_dict", "load_state_dict")):
                raise InputError(
                    "`schedule` should return a scheduler of `torch.optim.lr_scheduler`. Found "
                    f"{type(one).__name__}."
                )
        return found


def _shown(group: Mapping[str, Any]) -> str:
    """The settings of a group of parameters that are on: `lr 0.001, betas (0.9, 0.999), eps 1e-08`."""
    named = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in group.items()}
    named.pop("initial_lr", None)  # of schedulers, which are made after it
    on = {name: value for name, value in named.items() if value is not None and value is not False}
    return ", ".join(f"{name} {value}" for name, value in on.items())[:LONGEST]


def _check(found: Any, parameters: Sequence[Parameter]) -> None:
    """See that a program has made an optimizer of these parameters that can step along a gradient.

    Raises:
        InputError: it has not.
    """
    name = type(found).__name__
    if not isinstance(found, torch.optim.Optimizer):
        raise InputError(f"`optimizer` should return an optimizer of `torch.optim`. Found {name}.")
    known = {id(parameter) for parameter in parameters}
    if not all(id(parameter) in known for group in found.param_groups for parameter in group["params"]):
        raise InputError(
            f"`optimizer` {name} should step the parameters that it is called with. Found others, as those "
            "of the model itself: write `lambda parameters: torch.optim.SGD(parameters, 0.1)`."
        )
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            "`optimizer` should need no closure: a server has an aggregate, and cannot compute the loss."
            f" Found {name}. Use another."
        )
