"""The exponential moving average of the model, which is often better than the model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STRIP = 1 << 16
"""Parameters that a CPU updates at once, in float64, while they are in cache."""


@dataclass(frozen=True, kw_only=True)
class Ema:
    """Exponential moving average of the parameters: z <- rho z + (1 - rho) theta after each step.

    "How to Scale Your EMA" (Busbridge et al., 2023): kappa times as many samples in a step ask for
    rho^kappa, so that the average spans the same number of samples, not of steps.
    """

    decay: float = 0.999
    """rho of a step with `reference_batch` samples."""
    reference_batch: int
    """Samples; the average spans about reference_batch / (1 - decay) of them."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"`decay` should be at least 0 and below 1. Found {self.decay}.")
        if self.reference_batch < 1:
            raise ValueError(f"`reference_batch` should be at least 1. Found {self.reference_batch}.")

    def rate(self, samples: float) -> float:
        """Rho of a step with so many samples: decay^(samples / reference_batch)."""
        return float(self.decay ** (samples / self.reference_batch))

    def share(self, samples: float) -> float:
        """1 - rho, with all its digits where rho is close to 1."""
        if self.decay == 0:
            return float(samples > 0)
        return -math.expm1(samples / self.reference_batch * math.log(self.decay))


def samples(batch: int, counted: int, effective: float | None = None) -> float:
    """The number of samples that a step has learned from.

    Args:
        batch: samples of one worker.
        counted: workers whose rows took part; none for a step that was rejected.
        effective: of a rule with weights c, (sum c)^2 / sum c^2 (`Step.effective`): rows that nobody
            believed teach nothing.
    """
    return batch * float(counted if effective is None else min(effective, counted))


class Average:
    """The averaged parameters, each as two float32 numbers: the nearest one, and what that leaves out.

    A single float32 number would stop to move where a step is less than half of its last digit.
    """

    def __init__(self, ema: Ema, parameters: Tensor) -> None:
        self._ema = ema
        self._point = parameters.detach().to(torch.float32, copy=True).contiguous()
        self._rest = torch.zeros_like(self._point)

    @property
    def parameters(self) -> Tensor:
        """(d,) float32, on the device of the first ones; a view that changes, not to be written to."""
        return self._point

    def update(self, parameters: Tensor, samples: float) -> float:
        """Move towards the parameters after a step, in place; returns rho.

        Args:
            parameters: (d,) after the step.
            samples: what the step has learned from; 0 for one that was rejected, which changes nothing.
        """
        if samples > 0:
            latest, share = parameters.detach().to(self._point.device), self._ema.share(samples)
            width = STRIP if latest.device.type == "cpu" else max(1, len(latest))
            strips = (vector.split(width) for vector in (self._point, self._rest, latest))
            for point, rest, target in zip(*strips, strict=True):
                exact = (point.double() + rest).lerp_(target.double(), share)
                point.copy_(exact)
                rest.copy_(exact - point)
        return self._ema.rate(samples)

    def state(self) -> dict[str, Any]:
        """All that later averages depend on; the tensors are views that the next update changes."""
        return {"parameters": self._point, "rest": self._rest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, with the same bits.

        Raises:
            ValueError: it is of another model.
        """
        for saved in (state["parameters"], state["rest"]):
            if saved.shape != self._point.shape:
                expected, found = tuple(self._point.shape), tuple(saved.shape)
                raise ValueError(f"The average should have the shape {expected}. Found {found}.")
        self._point.copy_(state["parameters"])
        self._rest.copy_(state["rest"])
