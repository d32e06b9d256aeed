"""The committed evidence: its grids, its results, and the page that is printed from them."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from varangian.config.overrides import from_command_line
from varangian.experiments.results.cases import Case
from varangian.experiments.results.run import Run
from varangian.experiments.sweep.grid import GridFile

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@contextmanager
def importable():
    """The folder in which the evidence is a package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def catalogue():
    with importable():
        from evidence import catalogue
    return catalogue


@pytest.fixture(scope="module")
def costs():
    with importable():
        from evidence.costs import costs
    return costs


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


def test_costs_of_attacks_are_told_apart_by_worker_and_by_code(costs, tmp_path):
    config = {"workers": 4, "byzantine": {"count": 1}}
    records = [
        {
            "round": 0,
            "missing": ["w03"],
            "dropped": {},
            "seconds": {"wait": 1.5, "step": 0.5},
            "accuracy": None,
        },
        {
            "round": 1,
            "missing": ["w00"],
            "dropped": {"w03": "x"},
            "seconds": {"wait": 1.0},
            "accuracy": 0.5,
        },
    ]
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = {"outcome": "finished", "rounds": 2, "accuracy": 0.5, "refused": {"STALE": 3, "NUMEL": 1}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    case = Case("median", "stale_push", (), (Run(tmp_path),), ("1",))
    assert [*costs([case], "accuracy")] == [
        {
            "aggregator": "median",
            "attack": "stale_push",
            "accuracy": 0.5,
            "seconds_per_round": 1.5,
            "median_seconds": 1.5,
            "attackers_missed": 0.5,
            "honest_missed": 0.1667,
            "proven_faults": 1.0,
            "refused": {"NUMEL": 1.0, "STALE": 3.0},
        }
    ]
