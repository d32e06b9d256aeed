"""Scores of runs over rounds: a panel for accuracy, one for the losses, and one for each other metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from varangian.cli.views.figure import BLUE, GREEN, ORANGE, PINK, SKY, save

Series: TypeAlias = dict[str, list[tuple[int, float]]]
"""Round and value, by the name of the score."""

COLOURS = (BLUE, "#c1272d", GREEN, ORANGE, PINK, SKY)
LOSSES = {"loss": "held-out", "train_loss": "training"}
POINTS = 60
"""A line with fewer points shows each of them."""


def draw(runs: Mapping[str, Series], path: Path) -> None:
    """Write a PNG, or what the ending of the path says.

    Args:
        runs: label to series.
        path: the file.
    """
    from matplotlib.figure import Figure

    panels = _panels(runs)
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        scale = 100 if title == "accuracy" else 1
        for i, (label, series) in enumerate(runs.items()):
            for name in names:
                points = series.get(name, [])
                style = "--" if name == "train_loss" else "-"
                words = [label] if len(runs) > 1 else []
                words += [LOSSES[name]] if name in LOSSES else []
                axis.plot(
                    [point[0] for point in points],
                    [scale * point[1] for point in points],
                    style,
                    marker="o" if len(points) < POINTS else None,
                    ms=3,
                    lw=1.8,
                    color=COLOURS[i % len(COLOURS)],
                    label=", ".join(words),
                )
        axis.set_title(f"{title}, %" if title == "accuracy" else title)
        axis.set_xlabel("round")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if title == "accuracy":
            axis.set_ylim(0, 100)
        elif title == "loss" and all(value > 0 for value in _values(runs, names)):
            axis.set_yscale("log")
        if len(runs) > 1 or title == "loss":
            axis.legend(frameon=False, fontsize="small")
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), fontsize="small")
    save(figure, path, path.suffix.lstrip(".") or "png")


def _panels(runs: Mapping[str, Series]) -> dict[str, list[str]]:
    """Titles, and the scores in each panel."""
    names = {name for series in runs.values() for name in series}
    panels = {"accuracy": ["accuracy"]} if "accuracy" in names else {}
    if losses := [name for name in LOSSES if name in names]:
        panels["loss"] = losses
    others = sorted(name for name in names - {"accuracy", *LOSSES} if not name.startswith("ema_"))
    return panels | {name: [name] for name in others}


def _values(runs: Mapping[str, Series], names: list[str]) -> list[float]:
    return [value for series in runs.values() for name in names for _, value in series.get(name, [])]
