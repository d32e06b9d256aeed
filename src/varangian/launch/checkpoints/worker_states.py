"""The states of workers that belong to the checkpoints of a run: which are there, and which are kept.

Workers of a run on this machine write them beside the checkpoints. Those elsewhere keep their own, and the
checkpoints of a simulation have them inside.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from varangian.config import RunConfig
from varangian.config.settings import AUTO
from varangian.files import user_path
from varangian.launch.checkpoints.folder import WORKERS, CheckpointFolder
from varangian.worker.attacks import remembers
from varangian.worker.checkpoints.store import has_state, keep_states


@dataclass(frozen=True)
class WorkerStates:
    """The states of workers on this machine that belong to one checkpoint."""

    there: tuple[str, ...]
    """Names of workers, and of what attackers of one process know together."""
    missing: tuple[str, ...]
    """Of those who remember something, and of whom no state of this round is here."""

    def __str__(self) -> str:
        if not self.there:
            return "none here"
        whole = len(self.there) + len(self.missing)
        return f"{len(self.there)} of {whole}" if self.missing else f"all {whole}"


def states_folder(config: RunConfig, run: Path) -> Path | None:
    """Where workers on this machine keep what they remember; None where nobody could go on with the run."""
    if config.worker.state is None or config.checkpoint_every is None:
        return None
    return run / WORKERS if config.worker.state == AUTO else user_path(config.worker.state) / run.name


def worker_states(
    config: RunConfig, run: Path, round: int, members: Sequence[str], writer: str = ""
) -> WorkerStates | None:
    """The states of workers for the border of a round; None where workers need none of their own.

    Args:
        config: of the run.
        run: its folder.
        round: that begins at the border.
        members: the workers of the run there.
        writer: the name of the run when its checkpoint was written, if it was another one.
    """
    if config.backend == "simulate":
        return None
    own = config.worker.momentum > 0 or config.worker.inner is not None
    everybody = own or config.participation.pushes_deltas
    attackers = bool(config.byzantine_names) and remembers(config.byzantine.attack)
    parts = [part for part in _parts(states_folder(config, run)) if part.name.split("@")[-1] in members]
    if not (everybody or attackers or parts):
        return None
    names = {run.name, writer or run.name}
    there = {part.name for part in parts if any(has_state(part, name, round) for name in names)}
    missing = ({part.name for part in parts} | {*(members if everybody else ())}) - there
    return WorkerStates(tuple(sorted(there)), tuple(sorted(missing)))


def lost_states(
    config: RunConfig, run: Path, round: int, members: Sequence[str], writer: str
) -> str | None:
    """What is to be said where workers remember something, and nothing of it is on this machine.

    Args:
        config: of the run.
        run: its folder.
        round: that it goes on with.
        members: the workers of the run there.
        writer: as of `worker_states`.
    """
    found, folder = worker_states(config, run, round, members, writer), states_folder(config, run)
    if found is None or found.there:
        return None
    where = "is kept, as worker.state=null says" if folder is None else f"is in {folder}"
    return (
        f"warning: no state of a worker {where}: all go on without what they remember of earlier rounds, "
        "as their momentum, so the numbers are not those of an uninterrupted run"
    )


def tidy_states(config: RunConfig, run: Path, *, over: bool) -> None:
    """Delete the states of workers that nobody will go on from.

    Args:
        config: of the run.
        run: its folder.
        over: whether it has no rounds left, so that it goes on from its checkpoints alone.
    """
    folder, rounds = states_folder(config, run), CheckpointFolder(run).rounds()
    if folder is None:
        return
    if not rounds:
        # Without a checkpoint the run can only begin anew, and so do its workers.
        shutil.rmtree(folder, ignore_errors=True)
    for part in _parts(folder) if over else ():
        with suppress(OSError):
            keep_states(part, run.name, rounds)


def _parts(folder: Path | None) -> list[Path]:
    return sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
