"""Unequal availability: FedAvg ends near those who are there more often, FedLaAvg where all are served.

Whole runs, with the backend `simulate`.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(FOLDER)  # its model and its data are found by name
    return runpy.run_path(str(FOLDER / "fedlaavg_quadratic.py"))


def test_nine_to_one(bench: dict[str, Any]):
    fedavg, fedlaavg, deltas = (bench["end"](way, [9, 1], 0.05, 25) for way in bench["WAYS"])
    assert fedavg == pytest.approx(bench["biased"]([9, 1], 0.05), abs=5e-5)
    assert fedlaavg == pytest.approx(0.5, abs=5e-5)
    assert deltas == pytest.approx(0.5, abs=5e-5)


@pytest.mark.exhaustive  # nine to one keeps the promise
@pytest.mark.parametrize("rounds", [[3, 2], [1, 9]])
def test_the_bias_follows_the_turns(bench: dict[str, Any], rounds: list[int]):
    cycles = 250 // sum(rounds)
    assert bench["end"]("FedAvg", rounds, 0.05, cycles) == pytest.approx(
        bench["biased"](rounds, 0.05), abs=1e-4
    )
    assert bench["end"]("FedLaAvg", rounds, 0.05, cycles) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.exhaustive  # the same numbers as those of nine to one
def test_it_prints_all(bench: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert bench["main"](["--cycles", "45"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[2] == "FedAvg            0.1093   (0.1093 by formula)"
    assert told[3:] == ["FedLaAvg          0.5000", "FedLaAvg, deltas  0.5000"]
