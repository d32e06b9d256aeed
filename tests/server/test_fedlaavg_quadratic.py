"""Unequal availability: FedAvg ends near those who are there more often, FedLaAvg where all are served."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "fedlaavg_quadratic.py"))


def test_nine_to_one(bench: dict[str, Any]):
    fedavg = bench["end"]([9, 1], 0.02, 200, latest=False)
    fedlaavg = bench["end"]([9, 1], 0.02, 300, latest=True)
    assert fedavg == pytest.approx(0.1093, abs=5e-5)
    assert fedlaavg == pytest.approx(0.5, abs=5e-5)


@pytest.mark.parametrize("rounds", [[1, 1], [3, 2], [1, 9]])
def test_fedavg_is_as_biased_as_its_formula_says(bench: dict[str, Any], rounds: list[int]):
    assert bench["end"](rounds, 0.05, 100, latest=False) == pytest.approx(
        bench["biased"](rounds, 0.05), abs=1e-4
    )
    assert bench["end"](rounds, 0.05, 200, latest=True) == pytest.approx(0.5, abs=1e-4)


def test_it_prints_both(bench: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert bench["main"](["--cycles", "300"]) == 0
    told = capsys.readouterr().out
    assert "FedAvg          0.1093   (0.1093 by formula)" in told
    assert "FedLaAvg        0.5000" in told
