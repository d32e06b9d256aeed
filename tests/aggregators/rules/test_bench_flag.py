"""The benchmark measures what it says, or nothing."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL = ["--n", "5", "--f", "1", "--d", "2000", "--repeat", "2"]


@pytest.fixture
def bench() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "bench_flag.py"))


def test_reports_three_times(
    bench: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench["main"]([*SMALL, "--json", str(tmp_path / "flag.json")]) == 0
    written = json.loads((tmp_path / "flag.json").read_text())
    assert list(written["median_ms"]) == ["rows.mean(0)", "Aggregator(Flag())", "SVD, d x n"]
    assert all(ms > 0 for ms in written["median_ms"].values())
    assert written["error"] < 1e-5
    assert "SVD / this" in capsys.readouterr().out


def test_refuses_to_time_what_is_wrong(
    bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = bench["by_svd"]
    monkeypatch.setitem(bench["main"].__globals__, "by_svd", lambda rows, its: 1.01 * wrong(rows, its))
    assert bench["main"](SMALL) == 1
    out, err = capsys.readouterr()
    assert "nothing is timed" in err
    assert "median ms" not in out


def test_svd_form_is_in_the_type_of_the_rows(bench: dict[str, Any]) -> None:
    rows = bench["gradients"](5, 1, 300, 0)
    assert bench["by_svd"](rows, 2).dtype == torch.float32
