"""`varangian redteam` as it is typed: what it prints and writes, resuming, and errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from varangian.cli.main import main
from varangian.config import loads

SMALL = ("rounds=8", "model=softmax", "workers=7", "f=1", "worker.batch_size=8", "evaluate.every=8")


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "redteam.json").read_text())
    return {key: value for key, value in found.items() if key not in ("seconds", "searched")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "AGGREGATOR: the aggregator to attack should be given"),
        (("krumm",), "there is no aggregator of this name"),
        (("krum", "byzantine.attack=alie"), "is what the search is for"),
        (("krum", "byzantine.knows=own"), "should be 'all'"),
        (("mean", "f=0"), "should be at least 1, as somebody has to attack"),
        (("krum", "rouds=3"), "Did you mean 'rounds'"),
    ],
)
def test_errors(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["redteam", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_the_library_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("varangian.experiments.redteam.search.LIBRARY", "no_such_library")
    assert main(["redteam", "krum", "--out", str(tmp_path / "r")]) == 1
    assert (
        "a search needs optuna, which is not installed: pip install 'varangian[redteam]'"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_killed_and_typed_again_it_ends_the_same(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def typed(folder: Path) -> list[str]:
        given = ["redteam", "krum", *SMALL, "--generations", "2", "--seeds", "1", "--out", str(folder)]
        return [sys.executable, "-m", "varangian", *given]

    done = subprocess.run(typed(tmp_path / "whole"), capture_output=True, text=True, check=True)
    whole = results(tmp_path / "whole")
    line = done.stdout.strip().splitlines()[-1]
    assert line == whole["command"]
    assert line.startswith("varangian run ")
    assert loads(whole["settings"]).byzantine.count == 1
    accuracies = [one["accuracy"] for one in whole["full"] if one["attack"] is not None]
    assert whole["strongest"]["accuracy"] == min(accuracies)

    folder = tmp_path / "killed"
    process = subprocess.Popen(typed(folder), stdout=subprocess.DEVNULL, start_new_session=True)
    evaluations, runs = folder / "evaluations.jsonl", folder / "runs"
    for wanted in (
        lambda: evaluations.exists() and len(evaluations.read_text().splitlines()) > 5,
        runs.is_dir,
    ):
        while not wanted() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = subprocess.Popen(typed(folder), stdout=subprocess.DEVNULL, start_new_session=True)
    assert process.wait() == 0
    assert results(folder) == whole
    assert evaluations.read_text() == (tmp_path / "whole" / "evaluations.jsonl").read_text()
