"""FedOpt: the server's optimizers of adaptive federated optimization."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varangian.server.training.optimizers.base import OPTIMIZERS, Fraction, Optimizer, Positive
from varangian.server.training.optimizers.without_compiler import plain_class


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
        return plain_class(_FedOpt)(parameter, self)  # type: ignore[no-any-return]

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
