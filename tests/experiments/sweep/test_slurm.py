"""A sweep through a real Slurm: `.ci/slurm`, or the cluster of the environment."""

import json
import signal
import subprocess
import sys
import time

import pytest
from tests.extent import patience

from varangian.experiments.sweep.engines.batch import FOLDER, batches
from varangian.experiments.sweep.engines.choice import engine
from varangian.experiments.sweep.engines.slurm import Slurm
from varangian.experiments.sweep.sweep import run_sweep
from varangian.launch import run

# test_engines.py keeps the same promises with a stand-in for the engine.
pytestmark = [pytest.mark.exhaustive, pytest.mark.slow, pytest.mark.usefixtures("slurm")]


def test_a_sweep_has_the_digests_of_runs_here(planned):
    plan = planned(grid={"aggregator": ["median", "mean"]}, seeds=2)
    result = run_sweep(plan, engine=engine("slurm", per_task=2), command=["varangian", "sweep"])
    assert [outcome.reason for outcome in result.failed] == []
    assert not (plan.output / FOLDER).exists()
    digests = {outcome.point.id: outcome.result["digest"] for outcome in result.outcomes}
    assert digests == {point.id: run(point.config).digest for point in plan.points}


def test_a_sweep_that_is_killed_is_typed_again_and_finds_its_runs(planned, small_settings, tmp_path):
    grid = {"base": {**small_settings, "output": "runs"}, "grid": {"f": [0, 1]}, "seeds": 2}
    (tmp_path / "small.yaml").write_text(json.dumps(grid))
    command = [
        sys.executable,
        "-m",
        "varangian",
        "sweep",
        "small.yaml",
        "--slurm",
        "--per-task=4",
        "--format=json",
    ]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    until = time.monotonic() + patience(100)
    while not [batch.handle for batch in batches(tmp_path / "runs", "slurm") if batch.handle]:
        assert time.monotonic() < until
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (handle,) = [batch.handle for batch in batches(tmp_path / "runs", "slurm")]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])["result"]
    assert (result["done"], result["failed"], result["missing"]) == (4, 0, 0)
    assert not (tmp_path / "runs" / FOLDER).exists()
    assert f"Slurm {handle} still has" in again.stderr or result["carried_out"] == 0


def test_what_is_cancelled_is_over_and_is_handed_over_when_the_sweep_is_typed_again(planned):
    plan = planned(grid={"f": [1]})
    waiting = engine("slurm", "--begin=now+1hour --comment='of a test'", detach=True)
    assert run_sweep(plan, engine=waiting, command=["x"]).missing == 1
    (batch,) = batches(plan.output, "slurm")
    assert Slurm().states(batch.handle)[0].where == "waiting"
    Slurm().cancel(batch.handle)
    result = run_sweep(plan, engine=engine("slurm"), command=["x"])
    assert [outcome.state for outcome in result.outcomes] == ["finished"]
    assert not (plan.output / FOLDER).exists()


def test_an_option_that_slurm_refuses_is_told_in_its_words(planned):
    plan = planned(grid={"f": [1]})
    with pytest.raises(Exception, match=r"sbatch failed: invalid partition specified: nowhere"):
        run_sweep(plan, engine=engine("slurm", "--partition=nowhere"), command=["x"])
    assert not (plan.output / FOLDER).exists()
