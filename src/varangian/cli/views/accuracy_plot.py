"""The picture of the demo: accuracy over rounds, a panel for each attack. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from varangian.cli.views.figure import BLUE, GREEN, ORANGE, save

Curve = Sequence[tuple[int, float]]
COLOURS = {"mean": "#c1272d", "median": BLUE, "krum": ORANGE, "flag": GREEN}


def curves(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """One panel for each attack, one line for each rule; written as PNG.

    Args:
        panels: attack to rule to (round, accuracy from 0 to 1).
        path: the file.
    """
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (attack, lines) in zip(axes, panels.items(), strict=True):
        for rule, curve in lines.items():
            rounds, shares = [point[0] for point in curve], [100 * point[1] for point in curve]
            # Of a run that ended early there may be a single point, and a point is no line.
            axis.plot(rounds, shares, "o-", ms=3, label=rule, color=COLOURS.get(rule), lw=2)
        axis.set_title("no attack" if attack == "none" else attack.replace("_", " "))
        axis.set_xlabel("round")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out accuracy, %")
    axes[0].set_ylim(0, 100)
    # Beside the panels: inside one it hides a curve sooner or later.
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save(figure, path)
