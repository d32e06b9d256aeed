"""Classes of `torch.optim` whose steps look at each number by itself, under their names.

Arguments that only say how torch computes are left out, as `foreach` and `capturable`, and `maximize`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval

from varangian.server.training.optimizers.base import (
    FUSED,
    LARGEST,
    OPTIMIZERS,
    AboveOne,
    Bounds,
    Fraction,
    NotNegative,
    Optimizer,
    Positive,
    Share,
)

MOST_NUMBERS = 1e12
"""More than any model has: for bounds on the length of steps whose entries are bounded."""


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Stochastic gradient descent whose gradient is the aggregate, as `torch.optim.SGD`."""

    kind = torch.optim.SGD
    longest = LARGEST
    lr: Positive = 1.0
    momentum: Fraction = 0.0
    """Momentum of the server's steps; that of the workers is `worker.momentum`."""
    dampening: Share = 0.0
    """Dampening: the velocity takes up this much less of each gradient after the first."""
    nesterov: bool = False
    weight_decay: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise ValueError("`momentum` should be above 0 with `nesterov`. Found 0.")
        if self.nesterov and self.dampening:
            raise ValueError(f"`dampening` should be 0 with `nesterov`. Found {self.dampening}.")

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
    centered: bool = False
    """Divide by the root of the variance of gradients, in place of that of their mean square."""
    weight_decay: NotNegative = 0.0

    @property
    def vectors(self) -> int:
        kept = 1 + (self.momentum > 0) + self.centered
        return kept + 1 + (self.weight_decay > 0) + self.centered * kept

    def reach(self, longest: float) -> float:
        # A variance that is negative by rounding has no root.
        return math.inf if self.centered else longest / self.eps / (1 - self.momentum)


@OPTIMIZERS.register("adamax")
@dataclass(frozen=True, kw_only=True)
class Adamax(Optimizer):
    """Adamax, Adam with the infinity norm, as `torch.optim.Adamax`.

    "Adam: A Method for Stochastic Optimization" (Kingma and Ba, 2015), algorithm 2.
    """

    kind = torch.optim.Adamax
    lr: Positive = 2e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the mean of gradients and of the largest of them."""
    eps: Positive = 1e-8
    """Added to the denominator, for numerical stability."""
    weight_decay: NotNegative = 0.0

    @property
    def vectors(self) -> int:
        return 4 + (self.weight_decay > 0)

    def reach(self, longest: float) -> float:
        return longest / self.eps


@OPTIMIZERS.register("nadam")
@dataclass(frozen=True, kw_only=True)
class NAdam(Optimizer):
    """Adam with Nesterov momentum, as `torch.optim.NAdam`.

    "Incorporating Nesterov Momentum into Adam" (Dozat, 2016).
    """

    kind = torch.optim.NAdam
    lr: Positive = 2e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the means of gradients and of their squares."""
    eps: Positive = 1e-8
    """Added to the denominator, for numerical stability."""
    weight_decay: NotNegative = 0.0
    momentum_decay: NotNegative = 4e-3
    """Decay of the schedule by which the momentum rises."""
    decoupled_weight_decay: bool = False
    """Decoupled weight decay, as that of AdamW."""

    @property
    def vectors(self) -> int:
        return 4 + (self.weight_decay > 0)

    def reach(self, longest: float) -> float:
        return 2 * longest / self.eps


@OPTIMIZERS.register("radam")
@dataclass(frozen=True, kw_only=True)
class RAdam(Optimizer):
    """Rectified Adam, as `torch.optim.RAdam`.

    "On the Variance of the Adaptive Learning Rate and Beyond" (Liu et al., 2020).
    """

    kind = torch.optim.RAdam
    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the means of gradients and of their squares."""
    eps: Positive = 1e-8
    """Added to the denominator, for numerical stability."""
    weight_decay: NotNegative = 0.0
    decoupled_weight_decay: bool = False
    """Decoupled weight decay, as that of AdamW."""

    @property
    def vectors(self) -> int:
        return 5 + (self.weight_decay > 0)

    def reach(self, longest: float) -> float:
        return longest * max(1.0, 1 / self.eps)


@OPTIMIZERS.register("adadelta")
@dataclass(frozen=True, kw_only=True)
class Adadelta(Optimizer):
    """Adadelta, as `torch.optim.Adadelta`.

    "ADADELTA: An Adaptive Learning Rate Method" (Zeiler, 2012).
    """

    kind = torch.optim.Adadelta
    lr: Positive = 1.0
    rho: Fraction = 0.9
    """Decay rate of the means of squared gradients and squared steps."""
    eps: Positive = 1e-6
    """Added below the roots, for numerical stability."""
    weight_decay: NotNegative = 0.0

    @property
    def vectors(self) -> int:
        return 6 + (self.weight_decay > 0)


@OPTIMIZERS.register("asgd")
@dataclass(frozen=True, kw_only=True)
class ASGD(Optimizer):
    """Stochastic gradient descent whose rate decays by itself, as `torch.optim.ASGD`.

    "Acceleration of Stochastic Approximation by Averaging" (Polyak and Juditsky, 1992). The average is kept
    as torch keeps it, and is not the model; that is `ema`.
    """

    kind = torch.optim.ASGD
    lr: Positive = 1e-2
    lambd: NotNegative = 1e-4
    """Decay term of the parameters, and of the learning rate."""
    alpha: Share = 0.75
    """Power of the decay of the learning rate."""
    t0: NotNegative = 1e6
    """Steps after which averaging begins."""
    weight_decay: NotNegative = 0.0

    @property
    def vectors(self) -> int:
        return 4 + (self.weight_decay > 0)


@OPTIMIZERS.register("rprop")
@dataclass(frozen=True, kw_only=True)
class Rprop(Optimizer):
    """Resilient backpropagation, by the signs of the gradient alone, as `torch.optim.Rprop`.

    "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm" (Riedmiller and
    Braun, 1993). It is meant for full batches. The learning rate is the first step size of
    every parameter, and no later one depends on its schedule.
    """

    kind = torch.optim.Rprop
    lr: Positive = 1e-2
    etas: tuple[Annotated[float, Interval(gt=0, lt=1)], AboveOne] = (0.5, 1.2)
    """Factors of a step size after a change of sign, and after none."""
    step_sizes: tuple[Positive, Positive] = (1e-6, 50.0)
    """The least and the largest step size."""

    @property
    def vectors(self) -> int:
        return 6

    def after(self, bounds: Bounds, length: float, lr: float) -> Bounds:
        step = math.sqrt(MOST_NUMBERS) * max(self.step_sizes)
        return Bounds(bounds.point + step, max(bounds.memory, length))
