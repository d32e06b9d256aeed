"""The committed evidence: its grids, its results, and the page that is printed from them."""

import json
import sys
from pathlib import Path

import pytest

from varangian.config.overrides import from_command_line
from varangian.experiments.sweep.grid import GridFile

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def catalogue():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from evidence import catalogue
    finally:
        sys.path.remove(str(BENCHMARKS))
    return catalogue


def test_each_grid_of_the_evidence_is_valid(catalogue, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))  # where own rules are found
    for table in catalogue.TABLES:
        settings = ["data={cifar10: {path: .}}"] if table.needs == "cifar10" else []
        grid = GridFile.read(table.grid, from_command_line(settings))
        assert grid.name == table.name
        assert grid.seeds


def test_each_table_has_the_mean_and_the_unit_mean(catalogue):
    for table in catalogue.TABLES:
        if table.results.is_file():
            for group in json.loads(table.results.read_text())["groups"]:
                assert {"mean", "unit_mean"} <= {row["aggregator"] for row in group["rows"]}, table.name


def test_results_name_no_place_of_the_machine_that_made_them(catalogue):
    for path in [*catalogue.RESULTS.glob("*.json"), catalogue.ADVICE]:
        assert str(Path.home()) not in path.read_text()
        assert '"path"' not in path.read_text()
