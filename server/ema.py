"""An average of the model over rounds, which is often better than the model itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
    """How many samples a step has learned from.

    Args:
        batch: samples of one worker.
        counted: workers whose rows took part; none for a step that was rejected.
        effective: of a rule with weights c, (sum c)^2 / sum c^2 (`Step.effective`): rows that nobody
            believed teach nothing.
    """
    return batch * float(counted if effective is None else min(effective, counted))


class Average:
    """The averaged parameters."""

    def __init__(self, ema: Ema, parameters: Tensor) -> None:
        self._ema = ema
        self._point = parameters.detach().to("cpu", torch.float32, copy=True).contiguous()

    @property
    def parameters(self) -> Tensor:
        """(d,) float32 on the CPU; a view that the next update changes, not to be written to."""
        return self._point

    def update(self, parameters: Tensor, samples: float) -> float:
        """Move towards the parameters after a step, in place; returns rho.

        Args:
            parameters: (d,) after the step.
            samples: what the step has learned from; 0 for one that was rejected, which changes nothing.
        """
        if samples > 0:
            latest = parameters.detach().to("cpu", torch.float32)
            self._point.lerp_(latest, self._ema.share(samples))
        return self._ema.rate(samples)

    def restore(self, parameters: Tensor) -> None:
        """Go on from an average that was saved.

        Raises:
            ValueError: it is of another model.
        """
        if parameters.shape != self._point.shape:
            expected, found = tuple(self._point.shape), tuple(parameters.shape)
            raise ValueError(f"The average should have the shape {expected}. Found {found}.")
        self._point.copy_(parameters)
