"""Communication graphs: who hears whom, how fast that averages, and whether a rule can hold in it.

`GRAPHS` has them by name. `figures(graph, n)` says what one is worth, `problem(graph, n)` and
`requires(graph, rule, n, f)` why it will not do, `group(graph, n, t)` who pushes in a round. Plain numpy;
the only file that is ever read is that of the graph `file`.
"""

from varangian.server.graphs.base import GRAPHS, Graph, GraphError, Links, Matrix
from varangian.server.graphs.checks import Rule, problem, requires
from varangian.server.graphs.circulant import Chord, Circulant, Complete, Exponential, OnePeer, Ring
from varangian.server.graphs.figures import (
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
from varangian.server.graphs.file import AdjacencyFile
from varangian.server.graphs.halton import Halton
from varangian.server.graphs.links import Static, averaging
from varangian.server.graphs.random_regular import RandomRegular
from varangian.server.graphs.turns import cycle, group, inclusions

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
