"""`varangian graph`: figures of a communication graph, and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from varangian.aggregators import RULES, aggregator_from
from varangian.aggregators.base import robust
from varangian.aggregators.graphs import (
    GRAPHS,
    Figures,
    Graph,
    GraphError,
    figures,
    inclusions,
    problem,
    requires,
)
from varangian.cli.main import OK, CommandError
from varangian.cli.views.terminal import align
from varangian.config import yaml_text
from varangian.registry import MISSING, ConfigError, Problem

HEADERS = ("graph", "hears", "messages", "period", "1 - rho", "a round", "1 - sigma_2", "exact after")
LEGEND = """\
hears: from how many others in a round. messages: of all in a round. 1 - rho and 1 - sigma_2: of the weights
of a period; the larger, the faster differences vanish. a round: 1 - rho as if every round did the same.
exact after: rounds until everybody has exactly the average."""
BIASED = "some workers count for more than others in the end; links that go both ways would mend it"


def command(args: argparse.Namespace) -> int:
    """The figures of one graph, and a picture; or the figures of all graphs."""
    if args.name is None:
        if args.png or args.rule or args.f is not None:
            raise CommandError("--png, --rule and -f are for one graph: name it.")
        print("\n".join([*align([HEADERS, *map(cells, *overview(args.n))]), "", LEGEND]))
        return OK
    graph = GRAPHS.build(yaml_text.parse(args.name, "graph"), "graph")
    _refuse("graph", problem(graph, args.n))
    title = f"{next(iter(GRAPHS.spec(graph)))} on {args.n} workers"
    print("\n".join([title, *(f"  {line}" for line in align(rows(graph, args.n)))]))
    if args.rule or args.f is not None:
        print(f"  {verdict(graph, args.n, args.f or 0, args.rule)}")
    if args.png:
        _draw(graph, args.n, title, Path(args.png))
    return OK


def overview(n: int) -> tuple[list[str], list[Figures | str]]:
    """All graphs that have defaults for everything, and their figures or why there are none."""
    names = [name for name in GRAPHS if all(field.default is not MISSING for field in GRAPHS.fields(name))]
    return names, [_figures(GRAPHS.build(name, "graph"), n) for name in names]


def _figures(graph: Graph, n: int) -> Figures | str:
    try:
        return figures(graph, n)
    except GraphError as error:
        return str(error)


def cells(name: str, found: Figures | str) -> Sequence[str]:
    """A line of the overview."""
    if isinstance(found, str):
        return name, found
    return (
        name,
        _range(found.degree),
        f"{found.messages:.10g}",
        f"{found.period}",
        f"{found.gap:.3f}",
        f"{found.gap_per_round:.3f}",
        f"{found.singular_gap:.3f}",
        f"{found.exact}" if found.exact else "-",
    )


def rows(graph: Graph, n: int) -> Iterator[Sequence[str]]:
    """The rows of one graph in the table, a line for each figure."""
    found = figures(graph, n)
    fewest, most = found.degree
    yield "each hears from", f"{_range(found.degree)} in a round"
    yield "messages in a round", f"{found.messages:.10g}"
    yield "pushes to a server", f"{_range((fewest + 1, most + 1))} of {n} workers in a round"
    yield "period", _rounds(found.period)
    yield "1 - rho", f"{found.gap:.6f}" + (" over a period" if found.period > 1 else "")
    if found.period > 1:
        yield "", f"{found.gap_per_round:.6f} as if every round did the same"
    yield "1 - sigma_2", f"{found.singular_gap:.6f}"
    yield "doubly stochastic", "yes" if found.doubly_stochastic else f"no: {BIASED}"
    counts = inclusions(graph, n)
    if counts.min() < counts.max():
        busy, idle = counts.argmax(), counts.argmin()
        yield (
            "unequal",
            f"worker {busy} pushes {counts[busy]} times while {idle} does {counts[idle]}",
        )
    yield "exact average", f"after {_rounds(found.exact)}" if found.exact else "never, only ever closer"


def verdict(graph: Graph, n: int, f: int, rule: str | None) -> str:
    """That a rule holds in every neighbourhood, or which do.

    Raises:
        ConfigError: it does not, or there is no such rule.
    """
    if rule is None:
        holding = ", ".join(name for name in RULES if _holds(graph, name, n, f))
        return f"With f = {f} hold in every neighbourhood: {holding or 'none'}."
    aggregator = aggregator_from(yaml_text.parse(rule, "--rule"), "--rule", f=f)
    _refuse("--rule", requires(graph, aggregator, n, f))
    promise = "" if aggregator.robust else " It promises nothing against Byzantine workers."
    return f"{rule} with f = {f}: what it asks for is met in every neighbourhood.{promise}"


def _holds(graph: Graph, name: str, n: int, f: int) -> bool:
    try:
        rule = RULES.build(name, name, {"f": f})
    except ConfigError:  # a rule with more to configure than f
        return False
    return robust(rule) and requires(graph, rule, n, f) is None


def _range(both: tuple[int, int]) -> str:
    return f"{both[0]}" if both[0] == both[1] else f"{both[0]} to {both[1]}"


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _refuse(path: str, sentence: str | None) -> None:
    if sentence:
        raise ConfigError([Problem(path, sentence.rstrip("."))])


def _draw(graph: Graph, n: int, title: str, path: Path) -> None:
    try:
        from varangian.cli.views.graph_plot import draw
    except ImportError as error:
        raise CommandError(
            "--png needs matplotlib: install the extra `report` (pip install 'varangian[report]')."
        ) from error
    try:
        draw(graph, n, title, path)
    except OSError as error:
        raise CommandError(
            f"{path} cannot be written: {(error.strerror or str(error)).lower()}."
        ) from error
    print(f"  picture: {path}")
