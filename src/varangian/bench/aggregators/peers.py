"""Rules of other libraries, where they are installed; none is required.

Each of their rules is compared with ours in the convention that is theirs. Where the libraries of the field
are known to agree it must agree, too; else it is marked, and the difference is there to see. ByzFL's
SMEA is left out: it takes a minute, and its result depends on its random start.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varangian.bench.aggregators.cases import most_byzantine

TOLERANCE = 1e-4
"""Relative difference to ours in float64: their sums are float32, and some of them stop early."""
SUBSETS = 10_000
"""Rules that try all subsets are not asked for more of them."""
TAU = 3.0
"""A radius of clipping: one that clips."""

Rule = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Peer:
    """A rule of theirs."""

    name: str
    spec: object
    """Ours that it is compared with, as a configuration has it."""
    rule: Rule
    agrees: bool = True
    """Whether it should give the same."""


def peers(library: str, n: int) -> list[Peer]:
    """The rules of a library for n rows.

    Raises:
        Exception: whatever its import does; it is no part of ours.
    """
    return [*LIBRARIES[library](n, most_byzantine(n))]


def presence(library: str) -> tuple[bool, str]:
    """Whether it can be used, and its version or why not."""
    try:
        if find_spec(library) is None:
            return False, "not installed"
        peers(library, 15)
    except Exception as error:
        return False, f"it cannot be imported: {error}"
    try:
        return True, version(library)
    except PackageNotFoundError:
        return True, "unknown version"


def _byzfl(n: int, f: int) -> Iterator[Peer]:
    lib = _without_its_package("byzfl", "byzfl.aggregators")
    kept = {"convention": "byzfl"}
    yield Peer("Median", "median", lib.Median())
    yield Peer("TrMean", "trimmed_mean", lib.TrMean(f=f))
    yield Peer("Krum", {"krum": kept}, lib.Krum(f=f))
    yield Peer("MultiKrum", {"multi_krum": kept}, lib.MultiKrum(f=f))
    yield Peer("GeometricMedian, T=3", "geometric_median", lib.GeometricMedian(), agrees=False)
    yield Peer("GeometricMedian, T=200", "geometric_median", lib.GeometricMedian(nu=1e-6, T=200))
    # One object for each call: it remembers where it was.
    yield Peer("CenteredClipping", _clipping(), lambda rows: lib.CenteredClipping(tau=TAU)(rows))
    yield Peer("MoNNA", {"monna": {"pivot": 0}}, lib.MoNNA(f=f))
    yield Peer("Meamed", "meamed", lib.Meamed(f=f))
    yield Peer("CAF", "caf", lib.CAF(f=f), agrees=False)
    if math.comb(n, f) <= SUBSETS:
        yield Peer("MDA", "mda", lib.MDA(f=f))
    mixing, median, krum = lib.NNM(f=f), lib.Median(), lib.Krum(f=f)
    yield Peer("NNM, Median", _mixed("median"), lambda rows: median(mixing(rows)))
    yield Peer("NNM, Krum", _mixed({"krum": kept}), lambda rows: krum(mixing(rows)))


def _byzpy(n: int, f: int) -> Iterator[Peer]:
    coordinate, geometric, norm = (f"byzpy.aggregators.{kind}_wise" for kind in KINDS)
    kept, lower = {"convention": "byzfl"}, {"median": {"convention": "lower"}}

    def rule(where: str, module: str, name: str, **fields: Any) -> Any:
        return getattr(importlib.import_module(f"{where}.{module}"), name)(**fields)

    def on_list(built: Any) -> Rule:
        return lambda rows: built.aggregate(list(rows))

    def plain(where: str, module: str, name: str, **fields: Any) -> Rule:
        return on_list(rule(where, module, name, **fields))

    median = rule(coordinate, "median", "CoordinateWiseMedian")
    yield Peer("Median", lower, on_list(median))
    yield Peer(
        "TrimmedMean", "trimmed_mean", plain(coordinate, "trimmed_mean", "CoordinateWiseTrimmedMean", f=f)
    )
    meamed = plain(coordinate, "mean_of_medians", "MeanOfMedians", f=f)
    yield Peer("MeanOfMedians", "meamed", meamed, agrees=n % 2 == 1)
    krum = rule(geometric, "krum", "Krum", f=f)
    yield Peer("Krum", {"krum": kept}, on_list(krum))
    yield Peer("MultiKrum", {"multi_krum": kept}, plain(geometric, "krum", "MultiKrum", f=f, q=n - f))
    yield Peer(
        "GeometricMedian", "geometric_median", plain(geometric, "geometric_median", "GeometricMedian")
    )
    yield Peer("MoNNA", {"monna": {"pivot": 0}}, plain(geometric, "monna", "MoNNA", f=f))
    if math.comb(n, f) <= SUBSETS:
        mda = plain(geometric, "minimum_diameter_average", "MinimumDiameterAveraging", f=f)
        yield Peer("MDA", "mda", mda)
        yield Peer("SMEA", "smea", plain(geometric, "smea", "SMEA", f=f))
    clipping = plain(norm, "center_clipping", "CenteredClipping", c_tau=TAU, M=1, init="zero")
    yield Peer("CenteredClipping", _clipping(), clipping)
    yield Peer("CAF", "caf", plain(norm, "caf", "CAF", f=f), agrees=False)
    elimination = "ComparativeGradientElimination"
    yield Peer("CGE", "cge", plain(norm, "comparative_gradient_elimination", elimination, f=f))
    mixing = rule("byzpy.pre_aggregators", "nnm", "NearestNeighborMixing", f=f)
    yield Peer("NNM, Median", _mixed(lower), lambda r: median.aggregate(mixing.pre_aggregate(list(r))))
    yield Peer("NNM, Krum", _mixed({"krum": kept}), lambda r: krum.aggregate(mixing.pre_aggregate(list(r))))


KINDS = ("coordinate", "geometric", "norm")


def _torchjd(n: int, f: int) -> Iterator[Peer]:
    del n
    lib: Any = importlib.import_module("torchjd.aggregation")
    yield Peer("Krum", {"krum": {"convention": "torchjd"}}, lib.Krum(n_byzantine=f))
    yield Peer("TrimmedMean", "trimmed_mean", lib.TrimmedMean(trim_number=f))
    yield Peer("MGDA", "mgda", lib.MGDA(), agrees=False)  # stops within 0.001
    for name, spec, fields in (("UPGrad", "upgrad", {}), ("CAGrad", "cagrad", {"c": 0.5})):
        try:
            yield Peer(name, spec, getattr(lib, name)(**fields), agrees=False)  # regularised
        except ImportError:
            continue  # its solver is an extra of theirs


def _flwr(n: int, f: int) -> Iterator[Peer]:
    lib: Any = importlib.import_module("flwr.server.strategy.aggregate")

    def taking(call: Callable[[list[tuple[list[Any], int]]], Any]) -> Rule:
        def rule(rows: Tensor) -> Tensor:
            (found,) = call([([row.numpy()], 1) for row in rows])
            return torch.from_numpy(np.asarray(found))

        return rule

    cut = (f + 0.5) / n  # of which it takes the whole part of n times
    yield Peer("median", "median", taking(lib.aggregate_median))
    yield Peer("trimmed mean", "trimmed_mean", taking(lambda r: lib.aggregate_trimmed_avg(r, cut)))
    yield Peer("krum", "krum", taking(lambda r: lib.aggregate_krum(r, f, 0)))
    yield Peer("multi-krum", "multi_krum", taking(lambda r: lib.aggregate_krum(r, f, n - f - 2)))
    bulyan = taking(lambda r: lib.aggregate_bulyan(r, f, lib.aggregate_krum, to_keep=0))
    yield Peer("bulyan", "bulyan", bulyan, agrees=False)


LIBRARIES: dict[str, Callable[[int, int], Iterator[Peer]]] = {
    "byzfl": _byzfl,
    "byzpy": _byzpy,
    "torchjd": _torchjd,
    "flwr": _flwr,
}


def _clipping() -> object:
    return {"centered_clipping": {"tau": TAU}}


def _mixed(rule: object) -> object:
    return {"mix": ["nnm"], "rule": rule}


def _without_its_package(package: str, module: str) -> Any:
    """A module of a package whose own import would bring torchvision and plotting."""
    if package not in sys.modules and (spec := find_spec(package)) is not None:
        bare = ModuleType(package)
        bare.__spec__ = spec
        bare.__path__ = list(spec.submodule_search_locations or [])
        sys.modules[package] = bare
    return importlib.import_module(module)
