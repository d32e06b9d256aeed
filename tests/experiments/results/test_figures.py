"""Figures for papers: what they show, and the files that are written."""

import numpy as np
import pytest
from tests.experiments.results.conftest import ATTACKS, learning, record, settings

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from varangian.experiments.results.analyses.trust import trust
from varangian.experiments.results.figures import curves, heat_maps
from varangian.experiments.results.figures import trust as timelines
from varangian.experiments.results.figures.draw import draw
from varangian.experiments.results.figures.style import (
    COLUMN,
    DOUBLE,
    file_name,
    line_style,
    paper,
    shown,
    write,
)
from varangian.experiments.results.read import read_run, read_runs
from varangian.experiments.results.run import ResultsError
from varangian.experiments.results.study import Study


@pytest.fixture(scope="module")
def study(compared):
    return Study.of(read_runs([compared[0]]))


def test_curves_have_a_panel_for_each_attack(study):
    figure = curves.draw(study.curves(), "accuracy", study.rules)
    assert figure.get_size_inches()[0] == DOUBLE
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["no attack", "alie", "sign_flip"]
    by_place = {(curve.rule, curve.attack): curve for curve in study.curves()}
    for panel, attack in zip(panels, study.attacks, strict=True):
        for line, rule in zip(panel.lines, study.rules, strict=True):
            curve = by_place[rule, attack]
            assert line.get_xydata().tolist() == [
                [round, 100 * mean] for round, mean in zip(curve.rounds, curve.mean, strict=True)
            ]
    names = [text.get_text() for text in figure.legends[0].texts]
    assert names == ["krum", "median"]


def test_what_diverges_leaves_the_panel(tmp_path, write_run):
    for i, norm in enumerate((1.0, 1.0, 1e12)):
        rule = [{"krum": {"f": 2, "select": 1}}, {"median": {}}, {"mean": {}}][i]
        config = settings(aggregator=rule, byzantine__attack=ATTACKS["alie"])
        write_run(tmp_path / str(i), config, learning([0.1, 0.2], norm=norm))
    study = Study.of(read_runs([tmp_path]))
    (panel,) = curves.draw(study.curves_by_length(), "accuracy", study.rules, x="length").axes
    assert panel.get_xlim() == (0, 5)


def test_lines_differ_without_colour():
    styles = [line_style(i) for i in range(30)]
    assert len({(str(style["linestyle"]), style["marker"]) for style in styles}) == 30


def test_a_heat_map_has_its_numbers(study):
    (map,) = study.heat_maps()
    figure = heat_maps.draw(map)
    assert figure.get_size_inches()[0] == COLUMN
    axis = figure.axes[0]
    texts = {text.get_position(): text for text in axis.texts}
    for j, line in enumerate(map.squares):
        for i, square in enumerate(line):
            text = texts[i, j]
            assert text.get_text() == f"{100 * square.value:.1f}"
            pixel = axis.images[0].cmap(axis.images[0].norm(100 * square.value))
            contrast = abs(np.mean(to_rgb(text.get_color())) - np.mean(pixel[:3]))
            assert contrast > 0.4


@pytest.fixture
def timeline(tmp_path, write_run):
    weights = {f"w{i:02d}": 0.1 for i in range(9)}
    rows = [record(i, weights=weights, dropped={"w09": "not <finite> $x$"}) for i in range(3)]
    return write_run(tmp_path / "run", settings(byzantine__attack=ATTACKS["alie"]), rows)


def test_a_trust_timeline(timeline):
    figure = timelines.draw(trust(read_run(timeline)))
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()][-2:] == ["w08 *", "w09 *"]
    marks = axis.lines[0].get_xydata().tolist()
    assert marks == [[1, 9], [2, 9], [3, 9]]
    assert axis.lines[1].get_ydata()[0] == 7.5


def test_names_of_others_do_no_harm():
    assert file_name("test", "../a b$", "", "x") == "test-a_b-x"
    assert shown("a$b\n") == r"a\$b\n"
    assert shown("_hidden") == " _hidden"


def test_a_figure_is_written_in_three_forms(timeline, tmp_path):
    with paper():
        figure = timelines.draw(trust(read_run(timeline)))
        files = write(figure, tmp_path, "trust", "a,b\n")
    assert [path.name for path in files] == ["trust.pdf", "trust.png", "trust.csv"]
    pdf, png, data = [path.read_bytes() for path in files]
    assert pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf  # fonts as outlines, which publishers refuse
    assert b"CreationDate" not in pdf
    assert png.startswith(b"\x89PNG")
    assert data == b"a,b\n"


def test_a_folder_that_cannot_be_made(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"file cannot be written: File exists"):
        draw(study, tmp_path / "file")


@pytest.mark.exhaustive
def test_all_figures_of_a_study(study, tmp_path):
    files = draw(study, tmp_path / "figures")
    names = {path.name for path in files}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    assert {"worst_cases.tex", "worst_cases.csv", "runs.csv", "matched_length.csv"} < names
    stems = {name.rpartition(".")[0] for name in names if name.endswith(".pdf")}
    assert stems == {
        "test_accuracy_curve", "test_loss_curve", "accuracy_by_length", "test_heatmap", "loss_heatmap",
    }  # fmt: skip
    assert all({f"{stem}.png", f"{stem}.csv"} < names for stem in stems)


def test_a_line_far_below_the_others_is_named(tmp_path, write_run):
    for rule, accuracies in (("krum", [0.8, 0.9]), ("median", [0.7, 0.9]), ("mean", [0.1, 0.1])):
        aggregator = {"krum": {"f": 2, "select": 1}} if rule == "krum" else {rule: {}}
        config = settings(aggregator=aggregator, byzantine__attack=ATTACKS["alie"])
        write_run(tmp_path / rule, config, learning(accuracies))
    study = Study.of(read_runs([tmp_path]))
    (panel,) = curves.draw(study.curves(), "accuracy", study.rules).axes
    assert panel.get_ylim() == (70, 100)
    assert [text.get_text() for text in panel.texts] == ["mean: 10.0 %"]
