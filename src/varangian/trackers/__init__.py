"""Trackers: where the numbers of a run are sent besides its run folder, one in each file.

A tracker is a frozen dataclass whose fields are its settings, as everything that a configuration names. It
stands in `trackers`, `varangian.launch` begins it with a run, and a thread of its own (`follower`) hands it
each round: a tracker that fails, hangs or is slow costs lines of its own and nothing of the run. Packages
of trackers are imported in that thread.

The configuration and the rooms above it import this one.
"""

from varangian.trackers.base import TRACKERS, RunFacts, Tracker, TrackerError, Tracking, missing_packages
from varangian.trackers.follower import Followers
from varangian.trackers.mlflow import Mlflow
from varangian.trackers.tensorboard import TensorBoard
from varangian.trackers.wandb import Wandb
from varangian.trackers.weights import WeightTable

__all__ = [
    "TRACKERS",
    "Followers",
    "Mlflow",
    "RunFacts",
    "TensorBoard",
    "Tracker",
    "TrackerError",
    "Tracking",
    "Wandb",
    "WeightTable",
    "missing_packages",
]
