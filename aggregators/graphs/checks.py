"""Checks before a run: whether a graph is connected, and whether a rule can hold in its neighbourhoods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from varangian.aggregators.graphs.base import Graph, GraphError
from varangian.aggregators.graphs.figures import stranger


class Rule(Protocol):
    """The interface of an aggregator, as far as the checks need it."""

    def requires(self, n: int, f: int, /) -> str | None:
        """Why the guarantee does not hold for n rows of which f are Byzantine; None when it does."""
        ...


def problem(graph: Graph, n: int) -> str | None:
    """Why n workers cannot use a graph, which does not exist or is disconnected; None when they can."""
    try:
        apart = stranger(graph, n)
    except GraphError as error:
        return str(error)
    if apart is None:
        return None
    return (
        f"{graph!r} is disconnected with n = {n}: nothing that worker {apart[0]} sends ever reaches worker "
        f"{apart[1]}. Use exponential or chord, which connect any number of workers."
    )


def requires(graph: Graph, rule: Rule, n: int, f: int) -> str | None:
    """Why a rule does not hold in some neighbourhood; None when it holds in all.

    A neighbourhood is a worker and those from which it hears. All f Byzantine workers may be in one.
    """
    if reason := problem(graph, n):
        return reason
    for t, i, size in smallest_first(graph, n):
        if reason := rule.requires(size, f):
            when = f" in round {t}" if graph.period(n) > 1 else ""
            return (
                f"{graph!r} with n = {n} has neighbourhoods that are too small: worker {i} hears from "
                f"{size - 1}{when}, which makes {size} rows, and the rule cannot hold there: {reason}. "
                f"{advice(rule, n, f)}"
            )
    return None


def smallest_first(graph: Graph, n: int) -> Iterator[tuple[int, int, int]]:
    """Round, worker and size of one neighbourhood of each size, ascending."""
    found: dict[int, tuple[int, int]] = {}
    for t in range(graph.period(n)):
        for i in range(n):
            found.setdefault(len(graph.neighbours(n, i, t)) + 1, (t, i))
    for size, (t, i) in sorted(found.items()):
        yield t, i, size


def advice(rule: Rule, n: int, f: int) -> str:
    """The sentence that suggests another graph or other numbers."""
    degrees = (degree for degree in range(2, n) if n * degree % 2 == 0)
    enough = next((degree for degree in degrees if rule.requires(degree + 1, f) is None), None)
    if enough is None:
        return f"No graph on {n} workers is enough for f = {f}: use more workers or a smaller f."
    if enough == n - 1:
        return "Use complete."
    return f"Use a larger degree: random_regular with degree {enough}, or complete."
