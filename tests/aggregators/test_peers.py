"""Agreement with byzfl, where it is installed (`pip install --no-deps byzfl`); it is never required.

Its package imports torchvision and plotting; a bare package in its place gives us the rules without them.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import aggregator_from

RULES = {
    "median": ("median", "Median", {}),
    "trimmed mean": ("trimmed_mean", "TrMean", {"f": 3}),
    "geometric median": ("geometric_median", "GeometricMedian", {"nu": 1e-9, "T": 3000}),
    # byzfl keeps tau at every step, and starts from the reference it remembers
    "centered clipping": (
        {"centered_clipping": {"tau": 3.0, "iterations": 3}},
        "CenteredClipping",
        {"tau": 3.0, "L": 3},
    ),
    # its Krum has one neighbour more than the paper's: ours with f - 1 has as many
    "krum": ({"krum": {"f": 2}}, "Krum", {"f": 3}),
}


@pytest.fixture(scope="module")
def byzfl() -> Any:
    if (spec := find_spec("byzfl")) is None:
        pytest.skip("byzfl is not installed")
    bare = ModuleType("byzfl")
    bare.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["byzfl"] = bare
    return importlib.import_module("byzfl.aggregators")


def ours(spec: object, rows: Tensor, f: int = 2) -> Tensor:
    return aggregator_from(spec, "aggregator", f=f)(rows).vector


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [15, 16])
def test_rule(byzfl: Any, rule: str, n: int) -> None:
    spec, name, fields = RULES[rule]
    rows = kit.plain(n, 300).double()
    theirs = getattr(byzfl, name)(**fields)(rows.clone())
    kit.assert_near(ours(spec, rows, fields.get("f", 2) - (name == "Krum")), theirs, 1e-6)


def test_nearest_neighbour_mixing(byzfl: Any) -> None:
    rows = kit.plain(15, 300).double()
    theirs = byzfl.Median()(byzfl.NNM(f=3)(rows.clone()))
    kit.assert_near(ours({"mix": ["nnm"], "rule": "median"}, rows, 3), theirs, 1e-6)
