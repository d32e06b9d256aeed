"""Communication graphs by name (`GRAPHS`), their mixing weights and figures.

`figures(graph, n)` has degree, messages and spectral gap; `problem(graph, n)` and `requires(graph, rule, n,
f)` say why a run cannot use a graph; `group(graph, n, t)` is the neighbourhood that pushes in a round.
Plain numpy without I/O but for the graph `file`. Everybody may import it; of the package it imports
nothing.
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
from varangian.aggregators.graphs.schedule import cycle, group, inclusions

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
