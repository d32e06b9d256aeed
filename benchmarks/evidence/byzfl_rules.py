"""Rules of the library ByzFL, by its own code, as rules of a run.

    aggregator: {"benchmarks.evidence.byzfl_rules:Byzfl": {rule: TrMean, before: [NNM]}}

They get the rows as ByzFL's server gets its vectors. Rules that remember are left out: a rule here is asked
anew in every round.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any, Literal

from torch import Tensor

Rule = Literal[
    "Average", "Median", "TrMean", "GeometricMedian", "Krum", "MultiKrum", "MDA", "Meamed", "CAF"
]


@dataclass(frozen=True)
class Byzfl:
    """A rule of ByzFL, with its own settings by default, after its own mixings."""

    f: int
    rule: Rule = "TrMean"
    before: tuple[Literal["NNM", "ARC"], ...] = ()

    def requires(self, n: int, f: int) -> str | None:
        """ByzFL asks nothing but f < n / 2."""
        return None if n > 2 * max(f, self.f) else f"n = {n} should be more than 2 f"

    def aggregate(self, rows: Tensor) -> Tensor:
        for mixing in self.before:
            rows = _of("preaggregators", mixing)(f=self.f)(rows)
        needs_f = self.rule not in ("Average", "Median", "GeometricMedian")
        found: Tensor = _of("aggregators", self.rule)(**({"f": self.f} if needs_f else {}))(rows)
        return found


def _of(module: str, name: str) -> Any:
    """A class of ByzFL, without the import of its package, which needs torchvision and plotting."""
    spec = find_spec("byzfl")
    if spec is None:
        raise ImportError("byzfl is not installed: pip install --no-deps byzfl scipy")
    sys.modules.setdefault("byzfl", module_from_spec(spec))
    return getattr(import_module(f"byzfl.aggregators.{module}"), name)
