"""A keeper of checkpoints without a server: rounds that are made up."""

import torch

from varangian.config import load
from varangian.config.settings import Checkpoints
from varangian.launch.checkpoints.folder import CheckpointFolder, Origin
from varangian.launch.checkpoints.keeper import CheckpointKeeper
from varangian.launch.output.run_folder import RunFolder
from varangian.protos.layout import Layout
from varangian.server.observability.record import RoundRecord
from varangian.server.rounds.checkpointing import ServerState
from varangian.server.training.parameters import ParameterVersions

CONFIG = load(None, ["data=synthetic", "model=softmax", "workers=5", "f=1", "rounds=20"])
ORIGIN = Origin.of(CONFIG, "a-run", 0, Layout((("weight", (4,)),)))


def record(round, **fields):
    return RoundRecord(**{"round": round, "dropped": {}, "missing": (), "seconds": {}} | fields)


def state(round, value=None, **held):
    """A state at the border of this round; its parameters are all this value, by default the round."""
    vector = torch.full((4,), float(round if value is None else value))
    version = ParameterVersions(vector).version
    learner = {
        "parameters": version.parameters,
        "reference": vector,
        "optimizer": {"step": torch.tensor(1.0)},
    }
    return ServerState(
        round,
        {"skips": 0},
        {**learner, "average": None},
        version,
        {},
        held=held,
        given=round - 1,
        members={"workers": [*CONFIG.worker_names], "quorum": 4, "f": 1},
    )


class Kept:
    """A run folder with a keeper, and what was noted."""

    def __init__(
        self, path, *, every=2, keep=2, best="accuracy", rounds=20, following=None, before=None, **given
    ):
        self.notes = []
        if following is None:
            self.run = RunFolder.create(CONFIG, ["varangian"], path=path, warn=self.notes.append)
        else:
            self.run = RunFolder.reopen(path, CONFIG, following, warn=self.notes.append)
        checkpoints = Checkpoints(every=every, keep=keep, best=best)
        self.keeper = CheckpointKeeper(
            self.run, checkpoints, every, rounds, ORIGIN, self.notes.append, before=before, **given
        )
        self.folder = CheckpointFolder(path)

    def round(self, round, value=None, **fields):
        """Do one round, with this value of the parameters after it; returns whether they were kept."""
        done = record(round, **fields)
        self.run.observe(done)
        if due := self.keeper.due(round + 1, done):
            self.keeper.keep(state(round + 1, value), {})
        self.keeper.wait()
        return due

    def close(self):
        self.keeper.wait()
        self.run.close()
