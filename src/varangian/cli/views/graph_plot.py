"""A graph as a circle of workers, and its speed of averaging. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from varangian.aggregators.graphs import (
    Complete,
    Exponential,
    Graph,
    Links,
    Matrix,
    Ring,
    disagreement,
    weights_of_period,
)
from varangian.cli.views.figure import BLUE, GREEN, ORANGE, PINK, RED, SKY, save

COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
GREY = "#777777"
ARROWS = 4000
NUMBERED = 40
"""Up to so many workers there is room for their numbers."""
CLOSE, BOTTOM = 1e-3, 3e-4
"""The end of the curves, and of the axis: what is exactly the average lies below it."""
LEAST_ROUNDS, MOST_ROUNDS = 10, 60
OTHERS: Mapping[str, tuple[Graph, str]] = {
    "complete": (Complete(), ":"),
    "exponential": (Exponential(), "--"),
    "ring": (Ring(), "-."),
}


def draw(graph: Graph, n: int, title: str, path: Path) -> None:
    """Written as PNG."""
    figure = Figure(figsize=(10.4, 5.2), layout="constrained")
    circle, speed = figure.subplots(1, 2, width_ratios=(1, 0.85))
    _circle(circle, graph, n)
    _speed(speed, graph, n)
    figure.suptitle(title)
    save(figure, path)


def groups(graph: Graph, n: int) -> dict[str, Links]:
    """The links with a name for each colour: by round, or by distance where there are few."""
    rounds = [weights > 0 for weights in weights_of_period(graph, n)]
    if len(rounds) > 1:
        return {f"round {t}" if t else f"round 0, {len(rounds)}, ...": at for t, at in enumerate(rounds)}
    (links,) = rounds
    places = np.arange(n)
    apart = (places[:, None] - places) % n  # how far before the receiver a sender is
    apart = np.minimum(apart, n - apart)
    distances = sorted({int(distance) for distance in apart[links]} - {0})
    if len(distances) > len(COLOURS):
        return {"": links}
    return {f"{distance} apart": links & (apart == distance) for distance in distances}


def _circle(axis: Axes, graph: Graph, n: int) -> None:
    angles = np.pi / 2 - 2 * np.pi * np.arange(n) / n  # clockwise from the top
    places = np.column_stack([np.cos(angles), np.sin(angles)])
    named = groups(graph, n)
    for i, links in enumerate(named.values()):
        _links(axis, links, places, COLOURS[i % len(COLOURS)])
    axis.scatter(
        places[:, 0],
        places[:, 1],
        s=320 if n <= NUMBERED else 40,
        color="white",
        edgecolor="black",
        zorder=3,
    )
    for worker, (x, y) in enumerate(places if n <= NUMBERED else ()):
        axis.text(x, y, str(worker), ha="center", va="center", fontsize=9, zorder=4)
    axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    axis.axis("off")
    if "" not in named:
        lines = [Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=2) for i in range(len(named))]
        axis.legend(lines, named, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False)


def _links(axis: Axes, links: Links, places: Matrix, colour: str) -> None:
    """Straight lines for links that go both ways, and for more than fit; bent arrows for the others."""
    worker_group = int(links.sum())
    alpha = 0.9 if worker_group <= 6 * len(links) else min(0.9, 6 / len(links))
    straight = links & links.T if worker_group <= ARROWS else links | links.T
    ends = np.argwhere(np.triu(straight, 1))
    axis.add_collection(LineCollection([*places[ends]], colors=colour, alpha=alpha, lw=1.2, zorder=1))
    room = 9 if len(links) <= NUMBERED else 3
    for receiver, sender in np.argwhere(links & ~straight):
        arrow = FancyArrowPatch(
            tuple(places[sender]),
            tuple(places[receiver]),
            arrowstyle="-|>",
            connectionstyle="arc3,rad=0.12",
            mutation_scale=9,
            shrinkA=room,
            shrinkB=room,
            color=colour,
            alpha=alpha,
            lw=1.2,
        )
        axis.add_patch(arrow)


def _speed(axis: Axes, graph: Graph, n: int) -> None:
    """The remaining differences between workers, round by round."""
    ours = [1.0, *(error / (n - 1) for error in disagreement(graph, n, MOST_ROUNDS))]
    needed = sum(1 for _ in takewhile(lambda error: error > CLOSE, ours))
    rounds = range(min(max(needed + 2, LEAST_ROUNDS), MOST_ROUNDS) + 1)
    for name, (other, style) in OTHERS.items():
        if other != graph:
            theirs = [1.0, *(error / (n - 1) for error in disagreement(other, n, len(rounds) - 1))]
            axis.plot(rounds, np.maximum(theirs, BOTTOM / 2), style, color=GREY, label=name, lw=1.2)
    axis.plot(
        rounds,
        np.maximum(ours[: len(rounds)], BOTTOM / 2),
        "o-",
        ms=3,
        color=COLOURS[0],
        label="this graph",
        lw=2,
    )
    axis.set_yscale("log")
    axis.set(ylim=(BOTTOM, 1.5), xlim=(0, len(rounds) - 1), xlabel="round")
    axis.set_ylabel("what is left of the differences")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
