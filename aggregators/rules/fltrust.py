"""FLTrust: rows weighted by their cosine with a gradient that the server trusts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from varangian.aggregators.base import RULES
from varangian.aggregators.errors import AggregationError
from varangian.aggregators.gram import Gram, inverses
from varangian.aggregators.numeric.algebra import Array

SHORT = 1e-30
"""Of the length of the reference: the factor of a shorter row would overflow float32."""


@RULES.register("fltrust")
@dataclass(frozen=True, kw_only=True)
class FLTrust:
    """FLTrust: the mean of the rows, scaled to the reference's length, weighted by max(0, cosine with it).

    "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping" (Cao et al., 2021). The reference
    is the gradient on a small root data set that the server holds and trusts, so any number of workers may
    be Byzantine. Where no cosine is positive the update is zero; without a reference the rule refuses. The
    last aggregate cannot stand for it: a mean of vectors of one length is shorter than they are, so updates
    would shrink from round to round. A row counts by its direction, however short it is; a row of zeros, or
    shorter than 1e-30 of the reference, has none.
    """

    from_origin: ClassVar[bool] = True

    uses_reference: ClassVar[bool] = True

    needs_root: ClassVar[bool] = True
    """The reference must be a gradient of the server's own; the server here does not compute one."""

    def requires(self, n: int, f: int) -> str | None:
        return None if n > f else f"it needs n >= f + 1, {f + 1} for f = {f}, and n is {n}"

    def __call__(self, gram: Gram) -> Tensor:
        trust, length = self._trust(gram), gram.reference_norm
        total = trust.sum()
        share = length / total if total > 0 else length
        return torch.from_numpy(trust * share * inverses(gram.norms.numpy()))

    def explain(self, gram: Gram) -> Mapping[str, Tensor]:
        """The cosine of each row with the reference, from 0 to 1."""
        return {"trust": torch.from_numpy(self._trust(gram))}

    def _trust(self, gram: Gram) -> Array:
        return gram.remembered(self, lambda: self._found(gram))

    def _found(self, gram: Gram) -> Array:
        lengths, length = gram.norms.numpy(), gram.reference_norm
        if length <= 0:
            raise AggregationError(
                "FLTrust needs a reference, the gradient on root data that the server trusts, and in this "
                "round there is none, or it is zero."
            )
        cosines = gram.towards.numpy() * inverses(lengths) / length
        trust: Array = np.clip(np.where(lengths > SHORT * length, cosines, 0.0), 0, 1)
        return trust
