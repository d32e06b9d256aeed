"""CAGrad's convex programme by a conic solver (cvxpy, imported on first use)."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np

from varangian.aggregators.errors import AggregationError
from varangian.aggregators.numeric.algebra import Array, eigh

SOLVERS = ("CLARABEL", "ECOS", "SCS")
"""In the order in which they are tried; those that are not installed are skipped."""
RANK = 1e-14
"""Share of the largest eigenvalue of the products below which one is rounding."""
CANCELLED = 1e-10
"""Squared length of a combination, over that of its parts end to end, that a solver leaves of zero."""


def minimum(products: Array, along: Array, radius: float) -> Array:
    """The weights in the simplex that minimise b'w + radius sqrt(w'Kw): (n, n), (n,) -> (n,).

    The longest row should have length 1. The objective is divided by the radius, so that a short mean is
    not lost in a solver's tolerances.

    Raises:
        AggregationError: no solver came to an optimum.
    """
    cvxpy: Any = import_module("cvxpy")
    values, vectors = eigh(products)
    kept = values > RANK * values[-1]
    root = (vectors[:, kept] * np.sqrt(values[kept])).T  # R with R'R = K
    weights = cvxpy.Variable(len(along), nonneg=True)
    cost = (along / radius) @ weights + cvxpy.norm(root @ weights, 2)
    problem = cvxpy.Problem(cvxpy.Minimize(cost), [cvxpy.sum(weights) == 1])
    _solve(cvxpy, problem)
    found: Array = np.maximum(weights.value, 0)
    total: float = found.sum()
    return found / total


def _solve(cvxpy: Any, problem: Any) -> None:
    answers = {}
    for solver in [name for name in SOLVERS if name in cvxpy.installed_solvers()]:
        try:
            with warnings.catch_warnings():
                # An inaccurate solution also says so in its status.
                warnings.simplefilter("ignore")
                problem.solve(solver=solver)
            answers[solver] = problem.status
        except cvxpy.error.SolverError as error:
            answers[solver] = str(error)
        if answers[solver] == cvxpy.OPTIMAL:
            return
    said = "; ".join(f"{solver}: {answer}" for solver, answer in answers.items()) or "none is installed"
    raise AggregationError(f"No conic solver came to an optimum ({said}).")
