from dataclasses import replace

import pytest

from varangian.server.observability.record import RoundRecord
from varangian.trackers import RunFacts


@pytest.fixture
def facts(tmp_path):
    folder = tmp_path / "a-run"
    folder.mkdir()
    settings = {"rounds": 3, "optimizer": {"name": "sgd", "lr": 0.5}, "names": None, "tags": ["a", "b"]}
    return RunFacts("a-run", folder, settings, ("w00", "w01", "w02"), 3)


@pytest.fixture
def record():
    """The record of a round."""
    plain = RoundRecord(
        round=0,
        dropped={"w02": "not finite"},
        missing=(),
        seconds={"wait": 0.25},
        weights={"w00": 0.75, "w01": 0.25, "w02": 0.0},
        effective=1.6,
        loss=2.5,
        metrics={"class_accuracy/3": 0.5, "own:metric": 1.0, "bad": float("nan")},
    )
    return lambda round, **changes: replace(plain, round=round, **changes)
