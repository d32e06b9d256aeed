"""Classes of `torch.optim` whose steps depend on the shapes of the parameters, under their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval

from varangian.registry import ConfigError, Problem
from varangian.server.training.optimizers.base import (
    FUSED,
    OPTIMIZERS,
    Fraction,
    NotNegative,
    NotPositive,
    Optimizer,
    Positive,
)
from varangian.server.training.optimizers.without_compiler import plain_class


@OPTIMIZERS.register("adafactor")
@dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor, as `torch.optim.Adafactor`: of a matrix it keeps sums of rows and columns alone.

    "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (Shazeer and Stern, 2018).
    """

    kind = torch.optim.Adafactor
    shaped = True
    lr: Positive = 1e-2
    """The largest learning rate, relative to the size of a parameter."""
    beta2_decay: NotPositive = -0.8
    """Power of the number of the step in the decay rate of the means of squares."""
    eps: tuple[Positive | None, Positive] = (None, 1e-3)
    """The least root mean square of a gradient, null for the rounding of its type; that of a parameter."""
    d: Annotated[float, Ge(1)] = 1.0
    """The largest root mean square of an update, beyond which it is clipped."""
    weight_decay: NotNegative = 0.0

    @property
    def vectors(self) -> int:
        return 6  # where all are vectors: the means, their copy, the gradient, and three between

    def build_all(self, parameters: Sequence[torch.nn.Parameter]) -> Sequence[torch.optim.Optimizer]:
        return [plain_class(self.kind)([*parameters], **self.arguments)]


@OPTIMIZERS.register("muon")
@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for matrices, as `torch.optim.Muon`, and AdamW for all other parameters.

    "Muon: An optimizer for hidden layers in neural networks" (Jordan et al., 2024). The first and
    the last layer of a network are better left to AdamW, too: a program can say so, with
    `varangian.Server(model, optimizer=...)`.
    """

    kind = torch.optim.Muon
    shaped = True
    lr: Positive = 1e-3
    """Learning rate of matrices."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay of matrices."""
    momentum: Fraction = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    """Coefficients of the Newton-Schulz iteration."""
    eps: Positive = 1e-7
    """The least norm that a matrix is divided by."""
    ns_steps: Annotated[int, Interval(ge=1, lt=100)] = 5
    """Steps of the Newton-Schulz iteration."""
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None
    """How the learning rate depends on the shape: null and `original` as in the paper; `match_rms_adamw` so
    that a rate of AdamW fits."""
    adamw_lr: Positive = 1e-3
    """Learning rate of AdamW; schedule and warmup change both."""
    adamw_betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    adamw_weight_decay: NotNegative = 1e-2

    @property
    def vectors(self) -> int:
        return 8

    def build_all(self, parameters: Sequence[torch.nn.Parameter]) -> Sequence[torch.optim.Optimizer]:
        matrices = [parameter for parameter in parameters if parameter.dim() == 2]
        others = [parameter for parameter in parameters if parameter.dim() != 2]
        if not matrices:
            rule = "should be one for a model without matrices, or a model that has some"
            raise ConfigError([Problem("optimizer.name", rule, "muon", "Use adamw.")])
        settings = {name: value for name, value in self.arguments.items() if not name.startswith("adamw_")}
        muon = plain_class(self.kind)(matrices, **settings)
        if not others:
            return [muon]
        adamw = plain_class(torch.optim.AdamW)(
            others, self.adamw_lr, self.adamw_betas, weight_decay=self.adamw_weight_decay, **FUSED
        )
        return [muon, adamw]
