"""All figures of a study in a folder, each as PDF, PNG and CSV, with the tables beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from varangian.experiments.results.analyses.curves import Curve
from varangian.experiments.results.analyses.trust import trust
from varangian.experiments.results.cases import At
from varangian.experiments.results.figures import curves as curves_figure
from varangian.experiments.results.figures import heat_maps as heat_map_figure
from varangian.experiments.results.figures import trust as trust_figure
from varangian.experiments.results.figures.style import file_name, paper, write, write_text
from varangian.experiments.results.run import ResultsError, Run
from varangian.experiments.results.study import Study
from varangian.experiments.results.tables import curves_csv, heat_map_csv, tables, trust_csv

LENGTH = "length of the steps so far"
CURVES = {"accuracy": "test_accuracy_curve", "loss": "test_loss_curve", "train_loss": "loss_curve"}


def draw(
    study: Study,
    folder: Path,
    *,
    metric: str | None = None,
    at: At = "final",
    timelines: Sequence[tuple[str, Run]] | None = None,
) -> list[Path]:
    """Draw every figure of a study.

    Args:
        study: of the runs.
        folder: for the files; it is made. What has the same name in it is replaced.
        metric: the score of tables; None is the first of the study.
        at: the evaluation that counts in tables.
        timelines: runs whose trust is drawn, with a name for each; None is the worst run of each rule.

    Returns:
        The files.

    Raises:
        ResultsError: the folder cannot be written, or a run is damaged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [
            write_text(folder, name, text)
            for name, text in tables(study, study.worst_cases(metric, at)).items()
        ]
        taken = set[str]()
        with paper():
            for name, figure, data in _figures(study, timelines):
                distinct = name
                while distinct in taken:
                    distinct = f"{name}-{len(taken)}"
                taken.add(distinct)
                found += write(figure, folder, distinct, data)
    except OSError as error:
        raise ResultsError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return found


def _figures(
    study: Study, timelines: Sequence[tuple[str, Run]] | None
) -> Iterator[tuple[str, Figure, str]]:
    """Every figure, with a name for its file and its data."""
    for metric in dict.fromkeys([study.metric, *(name for name in study.metrics if name == "loss")]):
        yield from _curves(study, CURVES.get(metric, f"{metric}_curve"), study.curves(metric), metric)
    name, found = f"{study.metric}_by_length", study.curves_by_length()
    yield from _curves(study, name, found, study.metric, LENGTH)
    for metric in [study.metric, *(name for name in ("train_loss",) if name in study.metrics)]:
        for shown in study.heat_maps(metric):
            place = file_name(shown.name, shown.rule or "", *shown.fixed.values())
            yield place, heat_map_figure.draw(shown), heat_map_csv(shown)
    for label, run in study.worst_runs() if timelines is None else timelines:
        timeline = trust(run)
        if not timeline.weighed and not timeline.marks:
            continue  # of a rule without weights, in whose run nobody was left out
        yield file_name("trust", label), trust_figure.draw(timeline), trust_csv(timeline)


def _curves(
    study: Study, name: str, found: Sequence[Curve], metric: str, x: str = "round"
) -> Iterator[tuple[str, Figure, str]]:
    """A figure of curves for each group."""
    for group in dict.fromkeys(curve.group for curve in found):
        members = [curve for curve in found if curve.group == group]
        title = ", ".join(f"{path} {value}" for path, value in zip(study.by, group, strict=True))
        figure = curves_figure.draw(members, metric, study.rules, x=x, title=title)
        data = curves_csv(members, study.by, "round" if x == "round" else "length")
        yield file_name(name, *group), figure, data
