"""Conformance of every rule, whatever it computes: properties, input families, and who is excused.

The aggregators come from the registries: a new rule is tested without a line here, unless one of the
properties is not meant to hold for it. Then it stands in `EXCUSED`, and a test checks that it needs to.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from varangian.aggregators import MIXINGS, RULES, Aggregate, Aggregator, Rows, aggregator_from

DEVICE = torch.device(os.environ.get("VARANGIAN_TEST_DEVICE", "cpu"))
F = 2
N = 15  # enough for bucketing by two and then Krum
D = 40

FIELDS = {"clipping": {"radius": 1.0}}
"""Of parts that cannot be named alone."""

AFTER_MIXINGS = ("flag", "krum", "median")
"""Rules that stand for all: one that weighs, one that selects, one that goes by columns."""

VARIANTS: dict[str, object] = {
    "flag released": {"flag": {"final": "released"}},
    "flag one component": {"flag": {"components": 1}},
    "flag reweighted": {"flag": {"iterations": 5}},
    "flag released pairs": {"flag": {"lam": 4.0, "iterations": 3}},
    "flag paper pairs": {"flag": {"lam": 4.0, "iterations": 3, "pairs": "paper"}},
    "krum of three": {"krum": {"select": 3}},
    "multi_krum byzfl": {"multi_krum": {"convention": "byzfl"}},
    "multi_krum garfield": {"multi_krum": {"convention": "garfield"}},
    "krum torchjd": {"krum": {"convention": "torchjd"}},
    "median lower": {"median": {"convention": "lower"}},
    "bulyan trimmed": {"bulyan": {"second": "trimmed"}},
    "nnm, bulyan": {"mix": ["nnm"], "rule": "bulyan"},
    "monna about a row": {"monna": {"pivot": 4}},
    "spectral_filter in two passes": {"spectral_filter": {"iterations": 2}},
    "cagrad rescaled": {"cagrad": {"rescale": "1/(1+c)"}},
    "cagrad far": {"cagrad": {"c": 1.5}},
    "centered_clipping in three steps": {"centered_clipping": {"iterations": 3}},
    "clipping about the reference, median": {
        "mix": [{"clipping": {"radius": 1.0, "about": "reference"}}],
        "rule": "median",
    },
    "nnm, bucketing, krum": {"mix": ["nnm", "bucketing"], "rule": "krum"},
}

ROUNDING_CHOOSES = {
    (rule, mixing): "rows that were cut are equally long, and it takes the shortest"
    for rule in ("cge", "monna")
    for mixing in ("arc", "clipping")
}
"""Rules after mixings that float32 and float64 need not agree on."""

EXCUSED = {
    ("mean", "bounded"): "one row moves it anywhere",
    ("flag", "translation"): "directions are from the origin",
    ("unit_mean", "translation"): "directions are from the origin",
    ("rfa", "bounded"): "four steps from the mean do not come back from a far row",
    ("rfa", "scale"): "its smoothing is in the units of the rows",
    ("sign_majority", "translation"): "signs are about the origin",
    ("sign_majority", "scale"): "it forgets all lengths",
    ("sign_majority", "unanimity"): "it forgets all lengths",
    ("cge", "translation"): "lengths are from the origin",
    ("mgda", "translation"): "it looks for the origin",
    ("upgrad", "bounded"): "one row moves it anywhere",
    ("upgrad", "translation"): "conflicts are about the origin",
    ("cagrad", "bounded"): "one row moves it anywhere",
    ("cagrad", "translation"): "conflicts are about the origin",
    ("cagrad", "unanimity"): "it goes c further than what all agree on",
    ("fltrust", "translation"): "cosines are about the origin",
    ("fltrust", "scale"): "its length is that of the reference",
    ("fltrust", "unanimity"): "its length is that of the reference",
    ("monna about a row", "permutation"): "it trusts a place",
    ("arc", "translation"): "lengths are from the origin",
    ("clipping", "translation"): "lengths are from the origin",
    ("clipping", "scale"): "its radius is in the units of the rows",
    ("clipping", "unanimity"): "it shortens what all agree on",
    ("flag released", "scale"): "it forgets all lengths",
    ("flag released", "unanimity"): "it forgets all lengths",
    ("bucketing", "permutation"): "its groups are random",
}

VETOED = {"mgda": "one row of zeros stops it"}
"""Rules that are bounded, and still not robust."""

REFERRED = ("fltrust",)
"""Rules that are nothing without a reference: they are given one where a test gives none."""

ILL_CONDITIONED = {"flag reweighted": 1e-4, "flag released pairs": 1e-4, "flag paper pairs": 1e-4}
"""What the rounding of float32 products may become: a weight of 1 / sqrt(1 - v) where v is almost 1."""


@cache
def specs() -> dict[str, object]:
    """Every rule alone, every mixing before rules of each shape, and the variants, by name."""
    found: dict[str, object] = {rule: _named(rule) for rule in RULES}
    for mixing in MIXINGS:
        for rule in AFTER_MIXINGS:
            found[f"{mixing}, {rule}"] = {"mix": [_named(mixing)], "rule": _named(rule)}
    return found | VARIANTS


def _named(name: str) -> object:
    return {name: FIELDS[name]} if name in FIELDS else name


def built(name: str, f: int = F) -> Aggregator:
    aggregator = aggregator_from(specs()[name], "aggregator", f=f)
    if set(parts(name)) & set(REFERRED):
        return Referred(aggregator.rule, aggregator.mix, aggregator.f)
    return aggregator


class Referred(Aggregator):
    """An aggregator with a reference of its own."""

    def __call__(
        self,
        rows: Rows | Tensor | Sequence[Any],
        reference: Tensor | None = None,
        rng: torch.Generator | None = None,
        *,
        faults: int = 0,
    ) -> Aggregate:
        rows = Rows.of(rows)
        if reference is None:
            reference = torch.linspace(0.01, 0.02, rows.d)
        return super().__call__(rows, reference, rng, faults=faults)


def combined(rule: str, mixing: str | None) -> Aggregator:
    """A rule after a mixing, for the most of F Byzantine rows that both stand among N."""
    parts = [_named(mixing)] if mixing else []
    aggregators = (
        aggregator_from({"mix": parts, "rule": _named(rule)}, "aggregator", f=f) for f in range(F, -1, -1)
    )
    return next(aggregator for aggregator in aggregators if aggregator.requires(N) is None)


def excused(name: str, what: str) -> bool:
    return (name, what) in EXCUSED or any((part, what) in EXCUSED for part in parts(name))


def parts(name: str) -> Iterator[str]:
    """The registered names in a name of `specs`: `nnm, krum` has two."""
    for part in name.split(", "):
        yield part.split()[0]


def those_with(what: str) -> list[str]:
    return [name for name in specs() if not excused(name, what)]


def least_n(aggregator: Aggregator) -> int:
    return next(n for n in range(1, 100) if aggregator.requires(n) is None)


def plain(n: int, d: int) -> Tensor:
    """Noise about a common direction, as gradients of one batch each."""
    return torch.randn(n, d) + torch.randn(d)


def large(n: int, d: int) -> Tensor:
    """Squares overflow half precision, and sums of fourth powers float32."""
    return 1e10 * plain(n, d)


def small(n: int, d: int) -> Tensor:
    """Squares underflow float32."""
    return 1e-25 * plain(n, d)


def lopsided(n: int, d: int) -> Tensor:
    """Lengths over six orders of magnitude."""
    return plain(n, d) * torch.logspace(-3, 3, n)[:, None]


def sparse(n: int, d: int) -> Tensor:
    """Nine entries of ten are exactly zero."""
    return plain(n, d) * (torch.rand(n, d) < 0.1)


def low_rank(n: int, d: int) -> Tensor:
    """All rows in one plane."""
    return torch.randn(n, 2) @ torch.randn(2, d)


FAMILIES: dict[str, Callable[[int, int], Tensor]] = {
    family.__name__: family for family in (plain, large, small, lopsided, sparse, low_rank)
}


def rows_of(family: str, n: int = N, d: int = D, dtype: torch.dtype = torch.float64) -> Tensor:
    return FAMILIES[family](n, d).to(DEVICE, dtype)


def rng(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def update(aggregator: Aggregator, rows: Tensor, reference: Tensor | None = None) -> Tensor:
    """The aggregate's vector, with the same randomness at every call."""
    return aggregator(rows, reference, rng()).vector


def assert_values(
    spec: object,
    f: int,
    rows: object,
    reference: object,
    vector: object,
    weights: object,
    dtype: torch.dtype,
    slack: float = 1e-7,
) -> None:
    """A value computed by hand; `weights` may be None, where it is not told."""
    given = torch.tensor(rows, dtype=dtype, device=DEVICE)
    about = None if reference is None else torch.tensor(reference, dtype=dtype, device=DEVICE)
    found = aggregator_from(spec, "aggregator", f=f)(given, about)
    assert found.vector.tolist() == pytest.approx(vector, rel=1e-6, abs=slack)
    assert weights is None or found.weights.tolist() == pytest.approx(weights, rel=1e-6, abs=1e-7)


def assert_near(found: Tensor, wanted: Tensor, tolerance: float, scale: Tensor | None = None) -> None:
    """Euclidean distance at most `tolerance` of the length of `wanted`, or of `scale`'s longest row."""
    unit = (wanted if scale is None else scale).double()
    length = unit.reshape(-1, unit.shape[-1]).norm(dim=1).max()
    distance = (found.double() - wanted.double()).norm()
    assert distance <= tolerance * length, f"off by {distance / length:.2e} of {length:.2e}"
