"""Robust aggregation: n vectors in, one out, and the weight of each. No networking in here.

Five workers; the last one lies.

>>> import torch
>>> from varangian.aggregators import Aggregator, Krum, Mean, Median, NNM
>>> rows = torch.tensor([[1.0, 2.0], [1.1, 2.1], [0.9, 2.0], [1.0, 1.9], [900.0, -900.0]])
>>> Aggregator(Mean())(rows).vector
tensor([ 180.8000, -178.4000])
>>> Aggregator(Median())(rows).vector
tensor([1., 2.])

An aggregate also has the weight of each row, if the rule computes weights.

>>> Aggregator(Krum(f=1))(rows).weights
tensor([1., 0., 0., 0., 0.], dtype=torch.float64)

Mixings come before a rule, any number of them, and cost no further pass over the vectors.

>>> Aggregator(Median(), mix=(NNM(f=1),))(rows).vector
tensor([1., 2.])

A rule has a guarantee for n rows of which f are Byzantine, and says when it does not hold.

>>> Aggregator(Krum(f=1)).requires(n=4)
"Krum(f=1, select=1, convention='paper'): it needs n >= 2 f + 3, 5 for f = 1, and n is 4"

A vector that is not finite is dropped, reported, and counts as one of the f.

>>> rows[4] = torch.nan
>>> Aggregator(Median(), f=1)(rows).dropped
(4,)

Rows may be one matrix or a list, of tensors or arrays, in any floating point type, on any one device; they
are never written to. `RULES` and `MIXINGS` hold everything that can be named in a configuration, and
`aggregator_from` reads one.

>>> sorted(MIXINGS)
['arc', 'bucketing', 'clipping', 'nnm', 'synthetic']
>>> aggregator_from({"mix": ["nnm"], "rule": {"trimmed_mean": {"f": 2}}}, "aggregator", f=1)
Aggregator(rule=TrimmedMean(f=2), mix=(NNM(f=1),), f=1, backend=None, per_block=False)

A new rule is a frozen dataclass of one of three shapes (`base`): a `Weighting` turns the Gram matrix into n
weights, a `Mixing` turns it into k combinations for the rule after it, a `Columnwise` rule reduces each
coordinate. Registered under a name, it is tested by the conformance kit with all the others.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, kw_only=True)
... class Shortest:
...     def requires(self, n, f):
...         return None if n > f else "at least one row must be honest"
...
...     def __call__(self, gram):
...         return torch.nn.functional.one_hot(gram.norms.argmin(), len(gram)).double()
>>> Aggregator(Shortest())(rows).vector
tensor([1.0000, 1.9000])
"""

from varangian.aggregators.base import (
    MIXINGS,
    RULES,
    Aggregate,
    Columnwise,
    Conserving,
    Explained,
    Mixing,
    Resilient,
    Selecting,
    Weighting,
)
from varangian.aggregators.errors import AggregationError
from varangian.aggregators.gram import Gram
from varangian.aggregators.kernels import GramAccumulator
from varangian.aggregators.mixings.arc import ARC
from varangian.aggregators.mixings.bucketing import Bucketing
from varangian.aggregators.mixings.clipping import Clipping
from varangian.aggregators.mixings.nnm import NNM
from varangian.aggregators.mixings.synthetic import Synthetic
from varangian.aggregators.numeric.shares import WeightCap
from varangian.aggregators.pipeline import Aggregator
from varangian.aggregators.rows import Rows, RowsError
from varangian.aggregators.rules.bulyan import Bulyan
from varangian.aggregators.rules.caf import CAF
from varangian.aggregators.rules.cagrad import CAGrad
from varangian.aggregators.rules.centered_clipping import CenteredClipping
from varangian.aggregators.rules.cge import CGE
from varangian.aggregators.rules.flag import Flag
from varangian.aggregators.rules.fltrust import FLTrust
from varangian.aggregators.rules.geometric_median import GeometricMedian
from varangian.aggregators.rules.krum import Krum
from varangian.aggregators.rules.mda import MDA
from varangian.aggregators.rules.meamed import MeaMed
from varangian.aggregators.rules.mean import Mean
from varangian.aggregators.rules.median import Median
from varangian.aggregators.rules.mgda import MGDA
from varangian.aggregators.rules.monna import MoNNA
from varangian.aggregators.rules.phocas import Phocas
from varangian.aggregators.rules.sign_majority import SignMajority
from varangian.aggregators.rules.smea import SMEA
from varangian.aggregators.rules.spectral_filter import SpectralFilter
from varangian.aggregators.rules.trimmed_mean import TrimmedMean
from varangian.aggregators.rules.unit_mean import UnitMean
from varangian.aggregators.rules.upgrad import UPGrad
from varangian.aggregators.spec import aggregator_from, spec_of

__all__ = [
    "ARC",
    "CAF",
    "CGE",
    "MDA",
    "MGDA",
    "MIXINGS",
    "NNM",
    "RULES",
    "SMEA",
    "Aggregate",
    "AggregationError",
    "Aggregator",
    "Bucketing",
    "Bulyan",
    "CAGrad",
    "CenteredClipping",
    "Clipping",
    "Columnwise",
    "Conserving",
    "Explained",
    "FLTrust",
    "Flag",
    "GeometricMedian",
    "Gram",
    "GramAccumulator",
    "Krum",
    "MeaMed",
    "Mean",
    "Median",
    "Mixing",
    "MoNNA",
    "Phocas",
    "Resilient",
    "Rows",
    "RowsError",
    "Selecting",
    "SignMajority",
    "SpectralFilter",
    "Synthetic",
    "TrimmedMean",
    "UPGrad",
    "UnitMean",
    "WeightCap",
    "Weighting",
    "aggregator_from",
    "spec_of",
]
