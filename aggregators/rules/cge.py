"""CGE, comparative gradient elimination."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varangian.aggregators.base import RULES, check_f, honest_majority, told_enough
from varangian.aggregators.gram import Gram, mean_weights


@RULES.register("cge")
@dataclass(frozen=True, kw_only=True)
class CGE:
    """Comparative gradient elimination: the mean of the n - f shortest rows; ties go to the lower row.

    "Byzantine Fault-Tolerant Distributed Machine Learning with Norm-Based Comparative Gradient Elimination"
    (Gupta et al., 2021), where the rows are summed. It bounds the length of a row and nothing else: a
    short row in the wrong direction passes.
    """

    f: int

    def __post_init__(self) -> None:
        check_f(self.f)

    def requires(self, n: int, f: int) -> str | None:
        return honest_majority(n, self.f) or told_enough(self, f)

    def __call__(self, gram: Gram) -> Tensor:
        m = len(gram)
        return mean_weights(m, gram.norms.numpy().argsort(kind="stable")[: m - self.f])
