"""Agreement with the libraries of the field, where they are installed and where they mean the same rule.

None is required: `pip install --no-deps byzfl byzpy torchjd cloudpickle tqdm`. What does not stand here is
no oracle: byzfl's CAF and SMEA depend on the seed, byzpy's MeaMed is about the lower median for even n.
Where several subsets have the least diameter, both take the first in the order of the rows; of these rows
one subset is the best.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import Gram, Rows, aggregator_from

F = 3
ODD, BOTH = (15,), (15, 16)

Peer = Callable[[Any, Tensor], Tensor]
"""Their library and rows (n, d) to their update."""


def called(name: str, **fields: Any) -> Peer:
    """A byzfl or torchjd rule is called with a matrix, which byzfl's may write to."""
    return lambda library, rows: getattr(library, name)(**fields)(rows.clone())


def aggregated(name: str, **fields: Any) -> Peer:
    """A byzpy rule takes a list."""
    return lambda library, rows: getattr(library, name)(**fields).aggregate(list(rows))


def mixed_by(name: str) -> Peer:
    """The mean of the squares of what comes out of a mixing, which says more of it than the mean."""

    def squares(library: Any, rows: Tensor) -> Tensor:
        mixing = getattr(library, name)(f=F)
        listed = hasattr(mixing, "pre_aggregate")
        points = mixing.pre_aggregate(list(rows)) if listed else mixing(rows.clone())
        return torch.stack(list(points)).square().mean(dim=0)

    return squares


CLIPPED = {"centered_clipping": {"tau": 3.0, "iterations": 3}}
TRUSTING = {"monna": {"pivot": 0}}
BYZFL, TORCHJD = {"convention": "byzfl"}, {"convention": "torchjd"}

CASES: dict[tuple[str, str], tuple[object, Peer, tuple[int, ...]]] = {
    ("byzfl", "median"): ("median", called("Median"), BOTH),
    ("byzfl", "trimmed mean"): ("trimmed_mean", called("TrMean", f=F), BOTH),
    ("byzfl", "meamed"): ("meamed", called("Meamed", f=F), BOTH),
    ("byzfl", "krum"): ({"krum": BYZFL}, called("Krum", f=F), BOTH),
    ("byzfl", "multi-krum"): ({"multi_krum": BYZFL}, called("MultiKrum", f=F), BOTH),
    ("byzfl", "mda"): ("mda", called("MDA", f=F), BOTH),
    ("byzfl", "monna"): (TRUSTING, called("MoNNA", f=F, idx=0), BOTH),
    ("byzfl", "centered clipping"): (CLIPPED, called("CenteredClipping", tau=3.0, L=3), BOTH),
    ("byzfl", "geometric median"): ("geometric_median", called("GeometricMedian", nu=1e-9, T=3000), BOTH),
    ("byzfl", "nnm"): ("nnm", mixed_by("NNM"), BOTH),
    ("byzfl", "arc"): ("arc", mixed_by("ARC"), BOTH),
    ("byzpy", "median"): ({"median": {"convention": "lower"}}, aggregated("CoordinateWiseMedian"), BOTH),
    ("byzpy", "trimmed mean"): ("trimmed_mean", aggregated("CoordinateWiseTrimmedMean", f=F), BOTH),
    ("byzpy", "meamed"): ("meamed", aggregated("MeanOfMedians", f=F), ODD),
    ("byzpy", "krum"): ({"krum": BYZFL}, aggregated("Krum", f=F), BOTH),
    ("byzpy", "multi-krum"): (
        {"krum": {"select": 5, **BYZFL}}, aggregated("MultiKrum", f=F, q=5), BOTH,
    ),
    ("byzpy", "mda"): ("mda", aggregated("MinimumDiameterAveraging", f=F), BOTH),
    ("byzpy", "monna"): (TRUSTING, aggregated("MoNNA", f=F, reference_index=0), BOTH),
    ("byzpy", "cge"): ("cge", aggregated("ComparativeGradientElimination", f=F), BOTH),
    ("byzpy", "centered clipping"): (
        CLIPPED, aggregated("CenteredClipping", c_tau=3.0, M=3, init="zero"), BOTH,
    ),
    ("byzpy", "geometric median"): (
        "geometric_median", aggregated("GeometricMedian", tol=1e-12, max_iter=5000), BOTH,
    ),
    ("byzpy", "nnm"): ("nnm", mixed_by("NearestNeighborMixing"), BOTH),
    ("byzpy", "arc"): ("arc", mixed_by("ARC"), BOTH),
    ("torchjd", "trimmed mean"): ("trimmed_mean", called("TrimmedMean", trim_number=F), BOTH),
    ("torchjd", "krum"): ({"krum": TORCHJD}, called("Krum", n_byzantine=F), BOTH),
    ("torchjd", "multi-krum"): (
        {"krum": {"select": 5, **TORCHJD}}, called("Krum", n_byzantine=F, n_selected=5), BOTH,
    ),
}  # fmt: skip


MODULES = {
    "byzfl": ["aggregators"],
    "byzpy": [
        "aggregators.coordinate_wise",
        "aggregators.geometric_wise",
        "aggregators.norm_wise",
        "pre_aggregators",
    ],
    "torchjd": ["aggregation"],
}


def library(name: str) -> Any:
    """The rules of an installed library by their names; the test is skipped without it."""
    if (spec := find_spec(name)) is None:
        pytest.skip(f"{name} is not installed")
    if name == "byzfl":
        # It imports torchvision and plotting; the bare package gives us the rules without them.
        sys.modules.setdefault(name, module_from_spec(spec))
    found: dict[str, Any] = {}
    for module in MODULES[name]:
        found |= vars(importlib.import_module(f"{name}.{module}"))
    return SimpleNamespace(**found)


def ours(spec: object, rows: Tensor) -> Tensor:
    if spec not in ("nnm", "arc"):
        return aggregator_from(spec, "aggregator", f=F)(rows).vector
    aggregator = aggregator_from({"mix": [spec], "rule": "mean"}, "aggregator", f=F)
    mixing = aggregator.mix[0].mix(Gram.of(Rows.of(rows)), kit.rng())
    return (mixing @ rows).square().mean(dim=0)


PLACES = [(case, n) for case, (*_, sizes) in CASES.items() for n in sizes]
FAMILIES = ("plain", "lopsided")


def both(case: tuple[str, str], n: int, family: str) -> tuple[Tensor, Tensor]:
    """Our update and theirs."""
    spec, theirs, _ = CASES[case]
    rows = kit.FAMILIES[family](n, 300).double()
    return ours(spec, rows), theirs(library(case[0]), rows)


@pytest.mark.parametrize(("case", "n"), PLACES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_agrees(case: tuple[str, str], n: int, family: str) -> None:
    kit.assert_near(*both(case, n, family), 1e-6)
