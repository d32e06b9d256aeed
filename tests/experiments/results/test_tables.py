"""Tables as text, LaTeX and CSV."""

import csv
import io
import statistics

import pytest
from rich.console import Console
from tests.experiments.results.conftest import ATTACKS, RULES, learning, settings

from varangian.experiments.results.analyses.trust import trust
from varangian.experiments.results.read import read_run, read_runs
from varangian.experiments.results.study import Study
from varangian.experiments.results.tables import (
    csv_text,
    curves_csv,
    escape_latex,
    heat_map_csv,
    latex,
    matched_csv,
    plain,
    rich_table,
    runs_csv,
    trust_csv,
    worst_cases_csv,
)


@pytest.fixture(scope="module")
def study(compared):
    return Study.of(read_runs([compared[0]]))


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_in_a_terminal(study, compared):
    _, numbers = compared
    means = {
        (rule, attack): statistics.fmean(numbers[rule, attack, seed][-1] for seed in (1, 2, 10))
        for rule in ("krum", "median")
        for attack in ATTACKS
    }
    table = study.worst_cases()
    lines = plain(table).splitlines()
    assert lines[0] == "accuracy in %, at the end; mean ± standard deviation over seeds"
    assert lines[1].split() == ["rule", "no", "attack", "alie", "sign_flip", "worst"]
    for line, rule in zip(lines[2:4], ("krum", "median"), strict=True):
        shown = line.replace("*", "").split()
        worst = min(means[rule, "alie"], means[rule, "sign_flip"])
        assert (shown[0], shown[1], shown[-1]) == (
            rule, f"{100 * means[rule, 'none']:.1f}", f"{100 * worst:.1f}",
        )  # fmt: skip
    console = Console(file=io.StringIO(), width=120)
    console.print(rich_table(table))
    assert all(
        word in console.file.getvalue() for word in ("sign_flip", "median", "the minimum over attacks")
    )


def test_latex(study):
    table = study.worst_cases()
    text = latex(table)
    assert r"Rule & No attack & alie & sign\_flip & Worst case \\" in text
    krum = table.rows[0]
    cell = krum.cells["alie"]
    mean, std = f"{100 * cell.mean:.1f}", f"{100 * cell.std:.1f}"
    number = f"\\mathbf{{{mean}}}" if table.is_best(krum, "alie") else mean
    assert f"${number} \\pm {std}$" in text
    assert text.count(r"\mathbf") == 4
    assert text.count("\n") == text.count("\\\\\n") + 7


def test_text_of_others_is_escaped(tmp_path, write_run):
    assert escape_latex("a_b%\\{x}~^\n") == (
        r"a\_b\%\textbackslash{}\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}n"
    )
    assert csv_text(["a"], [["=HYPERLINK(1)"], ["-"], [-1.5], [None], ["x,\n"]]).splitlines() == [
        "a", "'=HYPERLINK(1)", "-", "-1.5", '""', '"x,\\n"',
    ]  # fmt: skip
    attack = {"byzantine__attack": ATTACKS["alie"]}
    write_run(tmp_path / "a", settings(**attack), learning([0.5]))
    write_run(tmp_path / "b", settings(seed=2, **attack), [], ended=None, error="\x1b[31m=1+1")
    study = Study.of(read_runs([tmp_path]))
    rows = rows_of(runs_csv(study))
    assert [(row["seed"], row["state"], row["accuracy"]) for row in rows] == [
        ("1", "finished", "0.5"), ("2", "error", ""),
    ]  # fmt: skip
    assert rows[1]["reason"] == r"\x1b[31m=1+1"
    table = study.worst_cases()
    assert "50.0 (1/2)" in plain(table)
    assert r"$50.0^{\dagger}$" in latex(table)


def test_csv_has_all_digits(study, compared):
    _, numbers = compared
    (krum, _) = rows_of(worst_cases_csv(study.worst_cases()))
    values = [numbers["krum", "alie", seed][-1] for seed in (1, 2, 10)]
    assert float(krum["alie mean"]) == pytest.approx(statistics.fmean(values), rel=1e-14)
    assert (krum["alie runs"], krum["alie planned"], krum["complete"]) == ("3", "3", "True")
    first, *_ = rows_of(curves_csv(study.curves_by_length(), study.by, "length"))
    assert (first["rule"], first["round"], first["length"], first["seeds"]) == ("krum", "2", "2.0", "3")
    assert len(rows_of(curves_csv(study.curves(), study.by))) == 12
    assert len(rows_of(matched_csv(study.matched(), study.by))) == 6
    (map,) = study.heat_maps()
    assert len(rows_of(heat_map_csv(map))) == 6
    shown = trust(read_run(study.runs[0].folder))
    cells = rows_of(trust_csv(shown))
    assert len(cells) == 40
    assert {cell["weight"] for cell in cells} == {""}


def test_each_setting_may_have_attacks_of_its_own(tmp_path, write_run):
    for i, (momentum, attack, rule) in enumerate(
        [
            (0.0, "alie", "krum"),
            (0.0, "alie", "median"),
            (0.9, "sign_flip", "krum"),
            (0.9, "alie", "median"),
        ]
    ):
        config = settings(
            worker__momentum=momentum, byzantine__attack=ATTACKS[attack], aggregator=RULES[rule]
        )
        write_run(tmp_path / str(i), config, learning([0.5]))
    rows = Study.of(read_runs([tmp_path])).worst_cases().rows
    found = {(row.group, row.rule): row.complete for row in rows}
    assert found == {
        (("0",), "krum"): True,
        (("0",), "median"): True,
        (("0.9",), "krum"): False,
        (("0.9",), "median"): False,
    }
