"""The base of the optimizers of the server, which state settings, memory, and bounds on its steps."""

from __future__ import annotations

import dataclasses
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
from annotated_types import Ge, Gt, Interval, Le
from torch import Tensor

from varangian.registry import Registry, fields_of
from varangian.server.training.optimizers.without_compiler import plain_class
from varangian.server.training.schedules import SCHEDULES, Constant, Schedule

LARGEST = 1e38
"""A third of the largest float32: room for the rounding of millions of steps."""
LONGEST = 1e15
"""Of a gradient whose squares are summed up: a float32 holds the sum of 10^8 of them."""
FUSED = {"fused": True}

Positive: TypeAlias = Annotated[float, Gt(0)]
NotNegative: TypeAlias = Annotated[float, Ge(0)]
Fraction: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
NotPositive: TypeAlias = Annotated[float, Le(0)]
AboveOne: TypeAlias = Annotated[float, Gt(1)]

_RULES: dict[Any, tuple[Any, str]] = {
    Gt(0): (lambda x: 0 < x < math.inf, "be a positive number"),
    Gt(1): (lambda x: 1 < x < math.inf, "be above 1"),
    Ge(0): (lambda x: 0 <= x < math.inf, "not be negative"),
    Ge(1): (lambda x: 1 <= x < math.inf, "be at least 1"),
    Le(0): (lambda x: -math.inf < x <= 0, "not be positive"),
    Interval(ge=0, lt=1): (lambda x: 0 <= x < 1, "be at least 0 and below 1"),
    Interval(gt=0, lt=1): (lambda x: 0 < x < 1, "be between 0 and 1, and neither"),
    Interval(ge=0, le=1): (lambda x: 0 <= x <= 1, "be between 0 and 1"),
    Interval(ge=1, lt=100): (lambda x: 1 <= x < 100, "be at least 1 and below 100"),
}


def _check(name: str, value: Any, hint: Any) -> None:
    """Check the limits of a field where a program, not a configuration, gives the value."""
    if value is None:
        return
    for mark in (mark for one in (hint, *typing.get_args(hint)) for mark in _marks(one)):
        if not _RULES[mark][0](value):
            raise ValueError(f"`{name}` should {_RULES[mark][1]}. Found {value}.")


def _marks(hint: Any) -> list[Any]:
    return [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Gt | Ge | Le | Interval)]


@dataclass(frozen=True)
class Bounds:
    """Norms that parameters and optimizer do not exceed: a step that cannot overflow needs no check."""

    point: float
    """Of the parameters."""
    memory: float = 0.0
    """Of what is remembered: SGD's velocity, the longest gradient so far of the others."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """An optimizer of torch; the fields other than `schedule` and `warmup` are arguments of its class.

    Steps are taken by torch, SGD's too: one by hand, block by block beside the old parameters, saves a copy
    and with it a seventh of the time in one thread, and is much slower with several.
    """

    __pydantic_config__: ClassVar[Any] = {"allow_inf_nan": False}
    kind: ClassVar[type[torch.optim.Optimizer]]
    options: ClassVar[Mapping[str, Any]] = {}
    """More arguments of its class. `fused` steps take a sixth of the time, and no memory between."""
    longest: ClassVar[float] = LONGEST
    """The bound of `Bounds.memory` below which all that is remembered is finite."""
    shaped: ClassVar[bool] = False
    """Whether steps depend on the shapes of the parameters, and not on their numbers alone."""

    lr: Positive
    schedule: Annotated[Schedule, SCHEDULES] = field(default_factory=Constant)
    """Learning rate schedule over the rounds."""
    warmup: Annotated[int, Ge(0)] = 0
    """Warmup: rounds over which the learning rate rises linearly, before those of the schedule."""

    def __post_init__(self) -> None:
        for setting in fields_of(type(self)):
            name, value, hint = setting.name, getattr(self, setting.name), setting.hint
            if typing.get_origin(hint) is tuple and ... not in typing.get_args(hint):
                for one, inner in zip(value, typing.get_args(hint), strict=True):
                    _check(name, one, inner)
            else:
                _check(name, value, hint)

    def rate(self, round: int, rounds: int) -> float:
        """The learning rate of round 0, 1, ... of a run."""
        if round < self.warmup:
            return self.lr * (round + 1) / self.warmup
        return self.schedule.rate(self.lr, round - self.warmup, rounds - self.warmup)

    @property
    @abstractmethod
    def vectors(self) -> int:
        """Most memory beside the parameters, in vectors as long as the model."""

    def reach(self, longest: float) -> float:
        """A bound on the length of a step at a learning rate of 1, by that of the longest gradient.

        Where there is none, each step is looked at, with a copy of what was remembered before it.
        """
        return math.inf

    def after(self, bounds: Bounds, length: float, lr: float) -> Bounds:
        """The bounds after one step along a gradient of this Euclidean norm: the triangle inequality."""
        weight_decay = getattr(self, "weight_decay", 0.0)
        decay = weight_decay * bounds.point if weight_decay else 0.0
        longest = max(bounds.memory, length + decay)
        return Bounds(bounds.point + lr * (self.reach(longest) + decay), longest)

    def build(self, parameter: Tensor) -> torch.optim.Optimizer:
        """The optimizer of torch for one vector of parameters."""
        return plain_class(self.kind)([parameter], **self.arguments, **self.options)  # type: ignore[no-any-return]

    def build_all(self, parameters: Sequence[torch.nn.Parameter]) -> Sequence[torch.optim.Optimizer]:
        """The optimizers of torch for parameters with their shapes; or for one vector, if not `shaped`."""
        (parameter,) = parameters
        return [self.build(parameter)]

    def schedulers(self, optimizers: Sequence[torch.optim.Optimizer]) -> Sequence[Any]:
        """The schedulers of torch of a program, for what `build_all` has made; none have `schedule`."""
        return []

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of its class of torch."""
        ours = ("schedule", "warmup")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ours}


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
