"""Communication graphs: who hears whom, how fast that averages, and whether a rule can hold in it.

`GRAPHS` has them by name. `figures(graph, n)` says what one is worth, `problem(graph, n)` and
`requires(graph, rule, n, f)` why it will not do, `group(graph, n, t)` who pushes in a round. Plain numpy;
the only file that is ever read is that of the graph `file`.
"""

from varangian.aggregators.graphs.base import GRAPHS, Graph, GraphError, Links, Matrix
from varangian.aggregators.graphs.checks import Rule, problem, requires
from varangian.aggregators.graphs.circulant import Chord, Circulant, Complete, Exponential, OnePeer, Ring
from varangian.aggregators.graphs.figures import (
    Figures,
    disagreement,
    doubly_stochastic,
    exact_period,
    figures,
    gap,
    product,
    singular_gap,
    stranger,
    weights_of_period,
)
from varangian.aggregators.graphs.file import AdjacencyFile
from varangian.aggregators.graphs.halton import Halton
from varangian.aggregators.graphs.links import Static, averaging
from varangian.aggregators.graphs.random_regular import RandomRegular
from varangian.aggregators.graphs.turns import cycle, group, inclusions

__all__ = [
    "GRAPHS",
    "AdjacencyFile",
    "Chord",
    "Circulant",
    "Complete",
    "Exponential",
    "Figures",
    "Graph",
    "GraphError",
    "Halton",
    "Links",
    "Matrix",
    "OnePeer",
    "RandomRegular",
    "Ring",
    "Rule",
    "Static",
    "averaging",
    "cycle",
    "disagreement",
    "doubly_stochastic",
    "exact_period",
    "figures",
    "gap",
    "group",
    "inclusions",
    "problem",
    "product",
    "requires",
    "singular_gap",
    "stranger",
    "weights_of_period",
]
