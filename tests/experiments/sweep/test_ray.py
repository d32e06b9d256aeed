"""A sweep through a real Ray on this machine."""

import pytest

from varangian.experiments.sweep.engines.batch import FOLDER
from varangian.experiments.sweep.engines.choice import engine
from varangian.experiments.sweep.engines.queue import QueueError
from varangian.experiments.sweep.engines.ray import Ray
from varangian.experiments.sweep.sweep import run_sweep
from varangian.launch import run


def test_options_are_refused():
    with pytest.raises(QueueError, match=r"Ray takes no options\. Found '--x'"):
        Ray("--x").check()


@pytest.mark.exhaustive  # test_engines.py keeps the same promises with a stand-in for the engine
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray and what it imports
def test_a_sweep_has_the_digests_of_runs_here(planned, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan = planned(grid={"aggregator": ["median", "mean"]})
    try:
        result = run_sweep(plan, engine=engine("ray", limit=1), command=["varangian", "sweep"])
    finally:
        ray.shutdown()
    assert [outcome.reason for outcome in result.failed] == []
    assert not (plan.output / FOLDER).exists()
    digests = {outcome.point.id: outcome.result["digest"] for outcome in result.outcomes}
    assert digests == {point.id: run(point.config).digest for point in plan.points}
