"""Geometry of vectors that attacks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unit(vector: Tensor) -> Tensor:
    """A vector of length 1 in the same direction; zero stays zero."""
    length = torch.linalg.vector_norm(vector)
    return vector / length if bool(length > 0) else torch.zeros_like(vector)


def rms_distance(rows: Tensor) -> float:
    """Root mean square distance of (k, d) to their mean."""
    return float(torch.linalg.vector_norm(rows - rows.mean(dim=0))) / math.sqrt(len(rows))
