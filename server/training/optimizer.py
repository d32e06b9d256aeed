"""The server's optimizers: how the parameters move along an aggregate, by name.

An optimizer is a frozen dataclass whose fields are its settings; a `Stepper` has it work and remembers what
it needs from step to step.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from varangian.aggregators import AggregationError
from varangian.registry import Registry, fields_of
from varangian.server.training.parameters import norm
from varangian.server.training.schedules import SCHEDULES, Constant, Schedule

LARGEST = 1e38
"""A third of the largest float32: room for the rounding of millions of steps."""
LONGEST = 1e15
"""Of a gradient whose squares are summed up: a float32 holds the sum of 10^8 of them."""
BOUND = "bound"
"""The name of `Bounds.memory` in a state."""
FUSED = {"fused": True}

Positive: TypeAlias = Annotated[float, Gt(0)]
NotNegative: TypeAlias = Annotated[float, Ge(0)]
Fraction: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]
State: TypeAlias = dict[str, Tensor | float]

_RULES: dict[Any, tuple[Any, str]] = {
    Gt(0): (lambda x: 0 < x < math.inf, "be a positive number"),
    Ge(0): (lambda x: 0 <= x < math.inf, "not be negative"),
    Interval(ge=0, lt=1): (lambda x: 0 <= x < 1, "be at least 0 and below 1"),
}


def _check(name: str, value: Any, hint: Any) -> None:
    """Check the limits of a field where a program, not a configuration, gives the value."""
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, Gt | Ge | Interval) and not _RULES[mark][0](value):
            raise ValueError(f"`{name}` should {_RULES[mark][1]}. Found {value}.")


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

    lr: Positive
    schedule: Annotated[Schedule, SCHEDULES] = field(default_factory=Constant)
    """Learning rate schedule over the rounds."""
    warmup: Annotated[int, Ge(0)] = 0
    """Warmup: rounds over which the learning rate rises linearly, before those of the schedule."""

    def __post_init__(self) -> None:
        for setting in fields_of(type(self)):
            name, value, hint = setting.name, getattr(self, setting.name), setting.hint
            if typing.get_origin(hint) is tuple:
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

    @abstractmethod
    def reach(self, longest: float) -> float:
        """A bound on the length of a step at a learning rate of 1, by that of the longest gradient."""

    def after(self, bounds: Bounds, length: float, lr: float) -> Bounds:
        """The bounds after one step along a gradient of this Euclidean norm: the triangle inequality."""
        decay = getattr(self, "weight_decay", 0.0) * bounds.point
        longest = max(bounds.memory, length + decay)
        return Bounds(bounds.point + lr * (self.reach(longest) + decay), longest)

    def build(self, parameter: Tensor) -> torch.optim.Optimizer:
        """The optimizer of torch for one vector of parameters."""
        ours = ("schedule", "warmup")
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ours}
        return _plain(self.kind)([parameter], **settings, **self.options)  # type: ignore[no-any-return]


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")


def _plain(kind: Any) -> Any:
    """The class without the decorators that import torch's compiler, which takes seconds and 150 MB.

    Nor are there the hooks of torch's profiler, which take longer than a step of a small model.
    """
    unhooked = inspect.unwrap(kind.step)

    def step(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        return unhooked(self, closure)

    vars(step)["hooked"] = True  # torch decorates no step that says so
    return type(
        kind.__name__, (kind,), {"add_param_group": inspect.unwrap(kind.add_param_group), "step": step}
    )


class Stepper:
    """An optimizer at work on (d,) float32 parameters, with what it remembers from step to step.

    A step that would leave the finite numbers changes nothing.
    """

    def __init__(self, optimizer: Optimizer, d: int, device: torch.device | str = "cpu") -> None:
        self._optimizer = optimizer
        self._parameter = torch.nn.Parameter(torch.empty(d, device=device))
        self._torch = optimizer.build(self._parameter)
        self._bounds = Bounds(math.inf)

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
        with torch.no_grad():
            self._torch.step()
        self._parameter.grad = None
        if risky and not all(math.isfinite(_norm(vector)) for vector in (out, *self._vectors())):
            self.restore(before)
            raise AggregationError("The step would make the parameters infinite.")
        self._bounds = bounds

    def state(self) -> State:
        """The state for resuming a run, by name; the tensors are those that the next step changes."""
        return {**self._torch.state[self._parameter], BOUND: self._bounds.memory}

    def restore(self, state: Mapping[str, Tensor | float]) -> None:
        """Go on from a state, which is copied."""
        memory = _copies(state)
        self._bounds = Bounds(math.inf, float(memory.pop(BOUND)))
        self._torch.state[self._parameter] = {name: self._placed(value) for name, value in memory.items()}

    def _placed(self, value: Tensor | float) -> Tensor | float:
        """A part of the state where torch has it: on the device, but for the counts of plain steps."""
        if not isinstance(value, Tensor) or not (value.dim() or "fused" in self._optimizer.options):
            return value
        return value.to(self._parameter.device)

    def _vectors(self) -> list[Tensor]:
        return [v for v in self.state().values() if isinstance(v, Tensor) and v.dim()]

    def _risky(self, bounds: Bounds) -> bool:
        """Whether an entry may not be finite."""
        return not (bounds.point < LARGEST and bounds.memory < self._optimizer.longest)


def _norm(vector: Tensor) -> float:
    found = norm(vector)
    return math.inf if found is None else found


def _copies(state: Mapping[str, Tensor | float]) -> State:
    return {name: v.clone() if isinstance(v, Tensor) else v for name, v in state.items()}


# ---- torch.optim


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Stochastic gradient descent whose gradient is the aggregate, as `torch.optim.SGD`."""

    kind = torch.optim.SGD
    longest = LARGEST
    lr: Positive = 1.0
    momentum: Fraction = 0.0
    """Momentum of the server's steps; that of the workers is `worker.momentum`."""
    nesterov: bool = False
    weight_decay: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise ValueError("`momentum` should be above 0 with `nesterov`. Found 0.")

    @property
    def vectors(self) -> int:
        return (self.momentum > 0) + (self.weight_decay > 0) + self.nesterov

    def reach(self, longest: float) -> float:
        return longest * (1 + self.nesterov)

    def after(self, bounds: Bounds, length: float, lr: float) -> Bounds:
        gradient = length + self.weight_decay * bounds.point
        velocity = self.momentum * bounds.memory + gradient
        along = gradient + self.momentum * velocity if self.nesterov else velocity
        return Bounds(bounds.point + lr * along, velocity if self.momentum else 0.0)


@OPTIMIZERS.register("adam")
@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam, as `torch.optim.Adam`.

    "Adam: A Method for Stochastic Optimization" (Kingma and Ba, 2015), algorithm 1.
    """

    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam
    options = FUSED
    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the means of gradients and of their squares."""
    eps: Positive = 1e-8
    """Added to the denominator, for numerical stability."""
    weight_decay: NotNegative = 0.0
    """L2 penalty: this times the parameters is added to the gradient."""
    amsgrad: bool = False
    """AMSGrad: divide by the largest mean of squares so far (Reddi, Kale and Kumar, 2018)."""

    @property
    def vectors(self) -> int:
        return 2 + self.amsgrad

    def reach(self, longest: float) -> float:
        return longest / self.eps


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW`.

    "Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2019), algorithm 2.
    """

    kind = torch.optim.AdamW
    weight_decay: NotNegative = 1e-2
    """Decoupled weight decay: each step shrinks the parameters by the learning rate times this."""


@OPTIMIZERS.register("adagrad")
@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer):
    """Adagrad, as `torch.optim.Adagrad`.

    "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization" (Duchi, Hazan and
    Singer, 2011).
    """

    kind = torch.optim.Adagrad
    options = FUSED
    lr: Positive = 1e-2
    lr_decay: NotNegative = 0.0
    """The learning rate is divided by 1 + this times the number of steps before."""
    initial_accumulator_value: NotNegative = 0.0
    """Initial sum of squared gradients."""
    eps: Positive = 1e-10
    """Added to the denominator, for numerical stability."""
    weight_decay: NotNegative = 0.0

    @property
    def vectors(self) -> int:
        return 1

    def reach(self, longest: float) -> float:
        return longest / self.eps


@OPTIMIZERS.register("rmsprop")
@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer):
    """RMSprop, as `torch.optim.RMSprop`.

    "Neural Networks for Machine Learning", lecture 6 (Hinton, 2012).
    """

    kind = torch.optim.RMSprop
    lr: Positive = 1e-2
    alpha: Fraction = 0.99
    """Smoothing constant of the mean of squared gradients."""
    eps: Positive = 1e-8
    """Added to the denominator, for numerical stability."""
    momentum: Fraction = 0.0
    weight_decay: NotNegative = 0.0

    @property
    def vectors(self) -> int:
        return 2 + (self.momentum > 0) + (self.weight_decay > 0)

    def reach(self, longest: float) -> float:
        return longest / self.eps / (1 - self.momentum)


# ---- Normalised steps


@OPTIMIZERS.register("normalized_sgd")
@dataclass(frozen=True, kw_only=True)
class NormalizedSgd(Optimizer):
    """Normalised gradient descent: every step is as long as the learning rate, x <- x - lr m / |m|.

    Without `momentum` m is the aggregate, as in Byz-NSGDM ("Byzantine-Robust Optimization under (L0,
    L1)-Smoothness", arXiv 2603.12512), where workers send momenta (`worker.momentum`) and NNM stands before
    the rule. Only the direction of the aggregate counts: an attack cannot lengthen a step or stop it by a
    short aggregate, and the step does not shrink near an optimum, so that the schedule has to. An aggregate
    of length 0 has no direction, and the parameters stay.
    """

    longest = LARGEST
    lr: Positive = 0.1
    """Length of a step, in the units of the parameters."""
    momentum: Fraction = 0.0
    """Decay rate b of the mean of aggregates, m <- b m + (1 - b) g, which is normalised in place of g."""

    @property
    def vectors(self) -> int:
        return int(self.momentum > 0)

    def reach(self, longest: float) -> float:
        return 1.0

    def build(self, parameter: Tensor) -> torch.optim.Optimizer:
        return _plain(_NormalizedSgd)(parameter, self)  # type: ignore[no-any-return]


class _NormalizedSgd(torch.optim.Optimizer):
    """`NormalizedSgd` as an optimizer of torch, for one vector."""

    def __init__(self, parameter: Tensor, settings: NormalizedSgd) -> None:
        super().__init__([parameter], {"lr": settings.lr})
        self._settings, self._parameter = settings, parameter
        if settings.momentum:
            self.state[parameter] = {"mean": torch.zeros_like(parameter)}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        point, momentum = self._parameter, self._settings.momentum
        direction = point.grad
        if direction is None:
            return
        if momentum:
            direction = self.state[point]["mean"].lerp_(direction, 1 - momentum)
        length = norm(direction)
        if length:  # None is not finite: the `Stepper` refuses the mean
            # Divided by its root twice: a float32 may hold neither the length nor its inverse.
            root = math.sqrt(length)
            divisor = torch.tensor(root, dtype=point.dtype, device=point.device)
            point.addcdiv_(direction, divisor, value=-self.param_groups[0]["lr"] / root)


# ---- FedOpt


@dataclass(frozen=True, kw_only=True)
class FedOpt(Optimizer):
    """The server of "Adaptive Federated Optimization" (Reddi et al., 2021), algorithm 2.

    With an aggregate g: m <- b m + (1 - b) g, v by variant, x <- x - lr m / (sqrt(v) + tau). Unlike in
    `torch.optim.Adam` nothing corrects the bias, and v starts at tau^2. In the paper -g is the mean move of
    the workers, `worker.local_lr` times what they push here; with the paper's tau, divided by that, the
    steps are the same.
    """

    lr: Positive = 1e-2
    momentum: Fraction = 0.9
    """Decay rate of the mean of gradients: the paper's beta_1."""
    tau: Positive = 1e-3
    """Added to the denominator, for numerical stability."""

    @property
    def vectors(self) -> int:
        return 4

    def reach(self, longest: float) -> float:
        return longest / self.tau

    def build(self, parameter: Tensor) -> torch.optim.Optimizer:
        return _plain(_FedOpt)(parameter, self)  # type: ignore[no-any-return]

    @abstractmethod
    def accumulate(self, squares: Tensor, square: Tensor) -> None:
        """Move v in place, given the squares of the entries of g; all (d,)."""


class _FedOpt(torch.optim.Optimizer):
    """FedOpt as an optimizer of torch, for one vector."""

    def __init__(self, parameter: Tensor, settings: FedOpt) -> None:
        super().__init__([parameter], {"lr": settings.lr})
        self._settings, self._parameter = settings, parameter
        squares = torch.full_like(parameter, settings.tau**2)
        self.state[parameter] = {"mean": torch.zeros_like(parameter), "squares": squares}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        point, settings = self._parameter, self._settings
        mean, squares = (self.state[point][name] for name in ("mean", "squares"))
        if point.grad is not None:
            mean.lerp_(point.grad, 1 - settings.momentum)
            settings.accumulate(squares, point.grad.square())
        point.addcdiv_(mean, squares.sqrt().add_(settings.tau), value=-self.param_groups[0]["lr"])


@OPTIMIZERS.register("fedadagrad")
@dataclass(frozen=True, kw_only=True)
class FedAdagrad(FedOpt):
    """FedAdagrad: v <- v + g^2 ("Adaptive Federated Optimization", Reddi et al., 2021)."""

    momentum: Fraction = 0.0

    def accumulate(self, squares: Tensor, square: Tensor) -> None:
        squares.add_(square)


@OPTIMIZERS.register("fedadam")
@dataclass(frozen=True, kw_only=True)
class FedAdam(FedOpt):
    """FedAdam: v <- b2 v + (1 - b2) g^2 ("Adaptive Federated Optimization", Reddi et al., 2021)."""

    beta2: Fraction = 0.99

    def accumulate(self, squares: Tensor, square: Tensor) -> None:
        squares.lerp_(square, 1 - self.beta2)


@OPTIMIZERS.register("fedyogi")
@dataclass(frozen=True, kw_only=True)
class FedYogi(FedOpt):
    """FedYogi: v <- v - (1 - b2) g^2 sign(v - g^2) ("Adaptive Federated Optimization", 2021)."""

    beta2: Fraction = 0.99

    def accumulate(self, squares: Tensor, square: Tensor) -> None:
        squares.addcmul_(square, (squares - square).sign_(), value=self.beta2 - 1)
