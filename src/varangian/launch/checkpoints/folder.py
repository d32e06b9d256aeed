"""The checkpoints of a run folder: their names, what each says of itself, and which of them are kept."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from varangian import __version__, state_file
from varangian.aggregators.kernels import kernels_in_use
from varangian.config import RunConfig
from varangian.config.identity import run_id
from varangian.protos.layout import Layout
from varangian.registry import ConfigError, Problem, suggestion
from varangian.server.participation import PARTICIPATION
from varangian.state_file import StateFile, StateFileError

FOLDER = "checkpoints"
WORKERS = "workers"
"""The folder of what workers on this machine have kept."""
VERSION = 1
NAME = re.compile(r"round-(\d{6,})\.safetensors")
TEMPORARY = re.compile(r"\.round-\d{6,}\.safetensors\.\d+")


def facts_of(config: RunConfig) -> dict[str, Any]:
    """Versions and numbers on which bits may depend, of this process."""
    return {
        "varangian": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": kernels_in_use(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": config.server.threads,
    }


@dataclass(frozen=True)
class Origin:
    """The origin of a checkpoint: what a run has to have in common with it to go on from it."""

    run: str
    """The name of the run."""
    epoch: int
    """Starts of the run before the one that wrote it."""
    identity: str
    """Of the settings, as `identity_of` gives it."""
    layout: str
    """Digest of the names and shapes of the parameters."""
    participation: str
    """The name of the participation."""
    facts: Mapping[str, Any]
    """Versions and numbers on which bits may depend."""

    @classmethod
    def of(cls, config: RunConfig, run: str, epoch: int, layout: Layout) -> Origin:
        """The origin of checkpoints that this process writes."""
        name = PARTICIPATION.name(config.participation)
        return cls(run, epoch, run_id(config), layout.digest.hex(), name, facts_of(config))

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """The score of a checkpoint: the last one that was taken before its round."""

    name: str
    value: float
    """Finite."""
    round: int
    """The round after which it was taken."""

    @property
    def lower_is_better(self) -> bool:
        return self.name.endswith(("loss", "error"))

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Any) -> Score | None:
        """From what `plain` gave; None where there is none."""
        match plain:
            case {"name": str(name), "value": float() | int() as value, "round": int(round)}:
                return cls(name, float(value), round)
            case _:
                return None


def check_best(config: RunConfig, names: Collection[str]) -> None:
    """See that the score by which a checkpoint is the best is one of the run.

    Args:
        config: of the run.
        names: of the scores of its evaluation but the loss.

    Raises:
        ConfigError: it is none.
    """
    checkpoint = config.server.checkpoint
    best = None if checkpoint is None or config.checkpoint_every is None else checkpoint.best
    scores = ["loss", *names]
    average = [f"ema_{name}" for name in scores] if config.ema is not None else []
    known = [*scores, *average, "train_loss"]
    # Without an accuracy it is the loss, also by default.
    if best is None or best == "accuracy" or best in known:
        return
    rule = "should be the name of a score of the run"
    raise ConfigError([Problem("server.checkpoint.best", rule, best, suggestion(best, known))])


class CheckpointFolder:
    """The folder of the checkpoints of one run; it is made with the first of them."""

    def __init__(self, run: Path) -> None:
        self.path = run / FOLDER

    def file(self, round: int) -> Path:
        """The file of the checkpoint with which this round begins."""
        return self.path / f"round-{round:06}.safetensors"

    def rounds(self) -> list[int]:
        """The rounds of all checkpoints, sound or not; the newest first."""
        return sorted(
            (int(found[1]) for name in self._names() if (found := NAME.fullmatch(name))), reverse=True
        )

    def head(self, round: int) -> Mapping[str, Any]:
        """What a checkpoint says of itself; its tensors are not looked at.

        Raises:
            StateFileError: it is none, or of a newer version.
            OSError: it cannot be read.
        """
        return self._checked(round, state_file.head(self.file(round)))

    def read(self, round: int) -> StateFile:
        """A checkpoint, all of it checked.

        Raises:
            StateFileError: it is none, damaged, or of a newer version.
            OSError: it cannot be read.
        """
        found = state_file.read(self.file(round))
        self._checked(round, found.plain)
        return found

    def scores(self) -> dict[int, Score | None]:
        """The score of each checkpoint whose head is sound."""
        found: dict[int, Score | None] = {}
        for round in self.rounds():
            with contextlib.suppress(StateFileError, OSError):
                found[round] = Score.of(self.head(round).get("score"))
        return found

    def tidy(self) -> None:
        """Remove what a killed server has left half written; only for the server that has the lock."""
        for name in self._names():
            if TEMPORARY.fullmatch(name):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()

    def prune(self, kept: Collection[int], newest: int) -> None:
        """Remove the checkpoints up to the newest that are not kept, damaged ones among them."""
        for round in self.rounds():
            if round <= newest and round not in kept:
                with contextlib.suppress(OSError):
                    self.file(round).unlink()

    def _checked(self, round: int, plain: Mapping[str, Any]) -> Mapping[str, Any]:
        file, version = self.file(round), plain.get("version")
        if not isinstance(version, int) or plain.get("round") != round:
            raise StateFileError(file, f"it is no checkpoint of round {round}")
        if version > VERSION:
            found = f"version {version}, this one knows {VERSION}"
            raise StateFileError(file, f"it was written by a newer varangian ({found})")
        match plain:
            case {
                "run": str(),
                "epoch": int(),
                "layout": str(),
                "digest": str(),
                "record": {"bytes": int(), "lines": int()},
                "alarms": {},
                "state": {"run": {}},
            }:
                return plain
            case _:  # as kept rows, which are a state file, too
                raise StateFileError(file, "it is no checkpoint")

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self.path.iterdir()]
        except OSError:
            return []


def to_keep(scores: Mapping[int, Score | None], keep: int, before: int | None) -> set[int]:
    """The rounds of checkpoints that are kept: the newest, the best, and one from before the last alarms.

    Args:
        scores: of each checkpoint that is there, by its round.
        keep: how many of the newest.
        before: the round of the first of the last alarms; None without alarms.
    """
    return {*reasons_to_keep(scores, keep, before)}


def reasons_to_keep(
    scores: Mapping[int, Score | None], keep: int, before: int | None
) -> dict[int, tuple[str, ...]]:
    """As `to_keep`, with the reasons for each."""
    earlier = [round for round in scores if before is not None and round <= before]
    kept = {
        "newest": sorted(scores)[-keep:],
        "best": [*_best(scores)],
        "before alarms": sorted(earlier)[-1:],
    }
    return {
        round: tuple(reason for reason, rounds in kept.items() if round in rounds)
        for round in sorted({round for rounds in kept.values() for round in rounds})
    }


def _best(scores: Mapping[int, Score | None]) -> Iterable[int]:
    """The round with the best score, the last of equals. Scores of an earlier name do not count."""
    names = [score.name for _, score in sorted(scores.items()) if score is not None]
    known = [
        (score, round) for round, score in scores.items() if score is not None and score.name == names[-1]
    ]
    ranked = [(-score.value if score.lower_is_better else score.value, round) for score, round in known]
    return [max(ranked)[1]] if ranked else []
