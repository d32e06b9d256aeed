import json
from contextlib import contextmanager

import pytest

from varangian import __version__
from varangian.experiments.sweep.grid import GridFile
from varangian.experiments.sweep.plan import make_plan
from varangian.experiments.sweep.processes.folders import RunFolders, RunTaken
from varangian.experiments.sweep.processes.forker import Round
from varangian.experiments.sweep.processes.job import Ending, carry_out
from varangian.launch import RunResult

SMALL = {
    "data": "synthetic",
    "model": "softmax",
    "workers": 5,
    "f": 1,
    "rounds": 2,
    "worker": {"batch_size": 8},
    "aggregator": "median",
}


@pytest.fixture
def small_settings():
    """The settings of runs that take no time."""
    return dict(SMALL)


@pytest.fixture
def small(tmp_path):
    """The grid of runs that take no time, from the parts of a grid file."""

    def grid(base=None, **parts):
        content = {"base": {**SMALL, "output": str(tmp_path / "runs"), **(base or {})}, **parts}
        return GridFile.of(content, name="small")

    return grid


@pytest.fixture
def planned(small):
    """The same as a plan."""

    def plan(base=None, **parts):
        return make_plan(small(base, **parts))

    return plan


def pretend(job, tell):
    """The folder of a run that was not carried out: its accuracy is its seed, in percent."""
    try:
        with RunFolders(job.output).claim(job.id) as claim:
            (claim.path / "manifest.json").write_text(json.dumps({"varangian": __version__}))
            accuracy = job.settings["seed"] / 100
            claim.finish(result(accuracy=accuracy, metrics={"validation_accuracy": accuracy}))
    except RunTaken:
        return Ending(job.id, "taken")
    tell(1)
    return Ending(job.id, "complete")


def result(**fields):
    """The result of a run of two rounds in two seconds."""
    usual = {"accuracy": 0.5, "loss": 1.0, "digest": "", "rounds": 2, "seconds": 2.0, "reason": "done"}
    return RunResult(**{**usual, "outcome": "finished", **fields})


class HereRunner:
    """Carries jobs out in this process, one after the other, when it is asked what has happened."""

    def __init__(self, carry_out):
        self.started, self._waiting, self.carry_out = [], [], carry_out

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def start(self, job):
        self.started.append(job)
        self._waiting.append(job)

    def events(self, seconds):
        while self._waiting:
            job, told = self._waiting.pop(0), []
            ending = self.carry_out(job, told.append)
            yield from (Round(job.id, rounds) for rounds in told)
            yield ending


@pytest.fixture
def runner():
    """A runner that makes folders and trains nothing."""
    return HereRunner(pretend)


@pytest.fixture
def training():
    """A runner that carries runs out."""
    return HereRunner(carry_out)


@pytest.fixture
def ended():
    """The result of a run of two rounds in two seconds, with other values."""
    return result


@pytest.fixture
def held():
    """Holds a run as another sweep does, for as long as the context lasts."""

    @contextmanager
    def hold(folders, id):
        with folders.claim(id) as claim:
            yield claim

    return hold
