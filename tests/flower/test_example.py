"""The app in examples/flower, in Flower's own simulation engine."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from tests.extent import patience

pytest.importorskip("flwr", reason="Flower is not installed (pip install 'varangian[flower]')")
pytest.importorskip("ray", reason="ray, in which Flower simulates, is not installed")


EXAMPLE = pathlib.Path(__file__).parents[2] / "examples/flower/simulate.py"


@pytest.mark.slow
@pytest.mark.exhaustive  # test_robust.py keeps the promise for every kind of reply
def test_the_example_learns_with_attackers_and_the_mean_does_not(tmp_path):
    accuracy = {}
    for way in ("--robust", "--no-robust"):
        ran = subprocess.run(
            [sys.executable, EXAMPLE, "--rounds=3", way],
            cwd=tmp_path,
            env={
                **os.environ,
                "FLWR_TELEMETRY_ENABLED": "0",
                "FLWR_HOME": str(tmp_path),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            timeout=patience(200),
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        accuracy[way] = float(re.search(r"^accuracy: (.*)$", ran.stdout, re.MULTILINE)[1])
    assert accuracy["--robust"] > 0.85
    assert accuracy["--no-robust"] < 0.3
