"""A job with `varangian.nvflare.Robust` in NVFlare's simulator, of whose five sites one is bad."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest
from tests.extent import patience

pytest.importorskip("nvflare", reason="NVFlare is not installed (pip install 'varangian[nvflare]')")

from varangian.nvflare import use_installed

JOB = pathlib.Path(__file__).with_name("simulation.py")


def trained(folder, rule, rounds):
    """The final model."""
    folder.mkdir()
    ran = subprocess.run(
        [sys.executable, JOB, folder, rule, str(rounds)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=patience(200),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = re.search(r"^model (.*)$", ran.stdout, re.MULTILINE)
    return [number for row in json.loads(found[1]) for number in row]


@pytest.mark.slow
@pytest.mark.exhaustive  # test_aggregator.py keeps the promise for every kind of result
def test_one_bad_site_of_five_is_masked_and_spoils_the_average(tmp_path):
    robust = trained(tmp_path / "robust", "robust", 4)
    # Each round halves the distance from one, of which there were 6 at most.
    assert all(abs(number - 1) < 0.5 for number in robust)
    lines = [json.loads(line) for line in (tmp_path / "robust/rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert [[*line["dropped"]] for line in lines] == [["site-1"], [], [], ["site-1"]]
    assert all(map(math.isnan, trained(tmp_path / "mean", "mean", 1)))


def test_what_is_no_job_is_refused():
    with pytest.raises(ValueError, match="Found list"):
        use_installed([])
