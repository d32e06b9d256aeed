"""One table: an aggregator, its rows, and the value computed by hand."""

import pytest
import torch
from tests.aggregators import kit
from tests.aggregators.kit import DEVICE

from varangian.aggregators import aggregator_from

CROSS = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
OBTUSE = [[0.0, 0.0], [1.0, 0.1], [-1.0, 0.1]]
LENGTHS_5_2_10 = [[3.0, 4.0], [0.0, 2.0], [6.0, 8.0]]
LINE = [[0.0], [1.0], [2.5], [10.0], [11.0]]

# specification, f, rows, the reference or None, the vector, the weights or None
TABLE = {
    "mean": ("mean", 0, [[1, 2], [3, 4], [5, 9]], None, [3, 5], [1 / 3] * 3),
    # directions (.6, .8) (0, 1) (.6, .8), median length 5
    "unit mean": ("unit_mean", 1, LENGTHS_5_2_10, None, [2, 13 / 3], [1 / 3, 5 / 6, 1 / 6]),
    # the zero row has no direction, and is a row among three all the same
    "unit mean, zero row": ("unit_mean", 1, [[3, 4], [0, 0], [0, 5]], None, [1, 3], [1 / 3, 0, 1 / 3]),
    "median, odd": ("median", 1, [[1, 5], [2, 9], [7, 1]], None, [2, 5], None),
    "median, even": ("median", 1, [[1], [2], [10], [4]], None, [3], None),
    "trimmed mean": ("trimmed_mean", 1, [[1], [2], [6], [4], [100]], None, [4], None),
    # the two smallest squared distances: 7.25, 3.25, 8.5, 57.25, 73.25
    "krum": ("krum", 1, LINE, None, [1], [0, 1, 0, 0, 0]),
    "krum of two": ({"krum": {"select": 2}}, 1, LINE, None, [0.5], [0.5, 0.5, 0, 0, 0]),
    "multi-krum": ("multi_krum", 1, LINE, None, [0.5], [0.5, 0.5, 0, 0, 0]),
    "geometric median, symmetric": ("geometric_median", 1, CROSS, None, [0, 0], [0.25] * 4),
    # the angle at the first corner is over 120 degrees
    "geometric median, a corner": ("geometric_median", 1, OBTUSE, None, [0, 0], [1, 0, 0]),
    "geometric median, copies": ("geometric_median", 1, [[3], [9], [3], [7], [3]], None, [3], None),
    "geometric median, a line": ("geometric_median", 1, [[1], [50], [2]], None, [2], [0, 0, 1]),
    # anywhere from 2 to 4: both are medians, and so is their mean
    "geometric median, an even line": ("geometric_median", 1, [[1], [4], [2], [9]], None, [3], None),
    "geometric median, a pair": ("geometric_median", 0, [[1], [3]], None, [2], [0.5, 0.5]),
    # distances 1, 2, 30 from zero, so tau = 2
    "clipped": ("centered_clipping", 1, [[1], [2], [30]], None, [5 / 3], [1 / 3, 1 / 3, 1 / 45]),
    # distances 0, 1, 29 from the reference, so tau = 1
    "clipped about 1": ("centered_clipping", 1, [[1], [2], [30]], [1], [5 / 3], None),
    # first 5/3 as above; then offsets -2/3, 1/3 and 2
    "clipped twice": (
        {"centered_clipping": {"tau": 2.0, "iterations": 2}}, 1, [[1], [2], [30]], None, [20 / 9], None,
    ),
    # two components of a plane explain it all: the unit mean
    "flag, everything": ("flag", 1, LENGTHS_5_2_10, None, [2, 13 / 3], [1 / 3, 5 / 6, 1 / 6]),
    # the direction that two of three share; median length 2, and (2, 0) is the sum of what it explains
    "flag, one component": (
        {"flag": {"components": 1}}, 1, [[2, 0], [4, 0], [0, 1]], None, [4 / 3, 0], None,
    ),
    "flag as released": (
        {"flag": {"components": 1, "final": "released"}}, 1, [[2, 0], [4, 0], [0, 1]], None, [2, 0], None,
    ),
    "flag as in the paper": (
        {"flag": {"components": 1, "final": "paper"}}, 1, [[2, 0], [4, 0], [0, 1]], None, [2, 0], None,
    ),
    # 0 and 1 become 0.5, and 5 becomes 3
    "nearest neighbours": ({"mix": ["nnm"], "rule": "median"}, 1, [[0], [1], [5]], None, [0.5], None),
    "nearest neighbours, mean": (
        {"mix": ["nnm"], "rule": "mean"}, 1, [[0], [1], [5]], None, [4 / 3], [1 / 3, 1 / 2, 1 / 6],
    ),
    # 1, 2, -2
    "clipped to 2": (
        {"mix": [{"clipping": {"radius": 2.0}}], "rule": "mean"}, 0, [[1], [4], [-8]], None, [1 / 3], None,
    ),
    # 1, 4, 1
    "clipped to 2 about 3": (
        {"mix": [{"clipping": {"radius": 2.0, "about": "reference"}}], "rule": "mean"},
        0, [[1], [4], [-8]], [3], [2], None,
    ),
    # 3 is nearest to the middle between the ends, and is there four times
    "synthetic copies": (
        {"mix": [{"synthetic": {"count": 3}}], "rule": "mean"},
        1, [[0], [3], [1], [8], [1], [2]], None, [24 / 9], [1 / 9, 4 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 9],
    ),
    "half as many synthetic copies": (
        {"mix": ["synthetic"], "rule": "median"}, 1, [[0], [3], [1], [8], [1]], None, [3], None,
    ),
    "one group of all": (
        {"mix": [{"bucketing": {"s": 3}}], "rule": "median"}, 0, [[1], [4], [-8]], None, [-1], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value(case: str, dtype: torch.dtype) -> None:
    kit.assert_values(*TABLE[case], dtype, slack=1e-8)


def test_explained_variance_by_hand() -> None:
    rows = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0]], device=DEVICE)
    found = aggregator_from({"flag": {"components": 1}}, "aggregator", f=1)(rows)
    assert found.details["explained_variance"].tolist() == pytest.approx([1, 1, 0], abs=1e-12)


def test_weight_of_the_reference() -> None:
    """Both rows are 2 away from the reference at 0 and clipped to 1: half of the way is left to it."""
    rows = torch.tensor([[2.0], [-2.0]], device=DEVICE)
    reference = torch.tensor([0.0], device=DEVICE)
    found = aggregator_from({"centered_clipping": {"tau": 1.0}}, "aggregator", f=0)(rows, reference)
    assert found.weights.tolist() == pytest.approx([0.25, 0.25])
    assert found.reference_weight == pytest.approx(0.5)
