"""The examples work as their first lines say."""

import csv
import sys
from pathlib import Path

import pytest

from varangian.config import load
from varangian.launch import run

BRIEF = ["backend=simulate", "rounds=2", "evaluate.every=1", "worker.batch_size=8"]


@pytest.mark.parametrize(
    ("example", "metrics", "settings"),
    [
        ("text", ["accuracy", "perplexity"], ["data.custom.options={train: 40, test: 8}"]),
        ("regression", ["median_error"], []),
        ("own-resnet", ["accuracy"], []),
        ("char-gpt", ["accuracy", "perplexity"], ["worker.local_steps=1", "data.custom.options={test: 8}"]),
    ],
)
def test_an_example_runs_and_reports_its_metrics(tmp_path, monkeypatch, example, metrics, settings):
    monkeypatch.chdir(Path(__file__).parents[2] / "examples" / example)
    monkeypatch.setattr(sys, "path", [*sys.path])
    records = []
    config = load("run.yaml", [*BRIEF, f"output={tmp_path}", *settings])
    result = run(config, observe=records.append, note=lambda text: None)
    assert result.outcome == "finished"
    found = {"accuracy": result.accuracy} if result.accuracy is not None else {}
    assert [*(found | (result.metrics or {}))] == metrics
    assert records[-1].loss == result.loss
    (table,) = tmp_path.glob("*/metrics.csv")
    with table.open() as lines:
        assert {*metrics, "loss"} <= {*next(csv.reader(lines))}


@pytest.mark.exhaustive
def test_a_resnet_with_statistics_that_travel_is_evaluated_with_them(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2] / "examples" / "own-resnet")
    monkeypatch.setattr(sys, "path", [*sys.path])
    given = ["backend=simulate", "evaluate.every=200", f"output={tmp_path}"]
    robust, local = (
        run(load("run.yaml", [*given, *more]), note=lambda text: None)
        for more in ([], ["buffers=local", "rounds=40"])
    )
    assert robust.accuracy > 0.9 > 0.5 > local.accuracy
