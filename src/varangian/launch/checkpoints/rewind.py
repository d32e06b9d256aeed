"""Going back: the checkpoints that a run has kept, and a new run that begins from one of them.

The run itself is left as it is. The new one has its settings, its record up to the checkpoint, and the
checkpoint; `--resume` goes on with it, also with other settings.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian.files import LATER, by_own_name, write_atomically
from varangian.launch.checkpoints.folder import CheckpointFolder, Score, reasons_to_keep
from varangian.launch.checkpoints.resume import parents, settings_of
from varangian.launch.checkpoints.worker_states import WorkerStates, states_folder, worker_states
from varangian.launch.output.chain import BRANCH, as_document
from varangian.launch.output.files import make_at
from varangian.launch.output.run_folder import CONFIG, MANIFEST, METRICS, ROUNDS
from varangian.launch.result import RunError
from varangian.state_file import StateFileError


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint as a list of them shows it."""

    round: int
    bytes: int
    written: str = ""
    score: Score | None = None
    why: tuple[str, ...] = ()
    """The reasons why it is kept."""
    damage: str = ""
    """The reason why it cannot be used, as far as its head says; empty: none."""
    workers: WorkerStates | None = None
    """The states of workers of its round; None where they need none of their own."""


def kept_checkpoints(run: Path) -> list[KeptCheckpoint]:
    """The checkpoints of a run, the newest first.

    Raises:
        RunError: it is no folder of a run.
    """
    run = by_own_name(run)
    config, folder = settings_of(run), CheckpointFolder(run)
    found = list[KeptCheckpoint]()
    scores = folder.scores()
    newest = 1 if config.server.checkpoint is None else config.server.checkpoint.keep
    reasons = reasons_to_keep(scores, newest, _alarm(folder))
    for round in folder.rounds():
        size = 0
        try:
            size = folder.file(round).stat().st_size
            head = folder.head(round)
        except FileNotFoundError:  # a run that goes on has removed it by now
            continue
        except (StateFileError, OSError) as error:
            damage = error.reason if isinstance(error, StateFileError) else error.strerror or str(error)
            found.append(KeptCheckpoint(round, size, damage=damage))
            continue
        written, why = str(head.get("written", "")), reasons.get(round, ())
        members = head["state"].get("members", {}).get("workers", config.worker_names)
        states = worker_states(config, run, round, members, str(head.get("run", "")))
        found.append(KeptCheckpoint(round, size, written, scores.get(round), why, workers=states))
    return found


def branch(run: Path, round: int, output: Path | None = None) -> Path:
    """Make a run that begins from a checkpoint of another one; returns its folder.

    Args:
        run: the folder of the other run.
        round: of its checkpoint.
        output: the new folder, which does not exist or is empty; by default beside the other.

    Raises:
        RunError: there is no such checkpoint, it is damaged, or the folder cannot be made.
    """
    run = by_own_name(run)
    settings_of(run)
    folder = CheckpointFolder(run)
    if round not in folder.rounds():
        there = ", ".join(map(str, sorted(folder.rounds()))) or "none"
        raise RunError(f"{run} has no checkpoint of round {round}. There are those of: {there}")
    try:
        head = folder.read(round).plain
    except StateFileError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        raise RunError(f"{folder.file(round)} cannot be read: {error.strerror or error}") from error
    made = None
    try:
        made = make_at(output or run.with_name(f"{run.name}-r{round}"))
        _copy(run, round, head, made)
    except OSError as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        place = error.filename or made or output
        reason = f"the new run cannot be written: {place}: {error.strerror or error}"
        hint = ". --output names another folder" if error.errno == errno.ENOTEMPTY else ""
        raise RunError(reason + hint) from error
    return made


def _copy(run: Path, round: int, head: Mapping[str, Any], made: Path) -> None:
    """Write all that the new run begins with; the checkpoint last."""
    settings = [
        path
        for path in run.iterdir()
        if (found := LATER.fullmatch(path.name)) and int(found[1]) <= head["epoch"]
    ]
    for path in (run / CONFIG, *settings):
        write_atomically(made / path.name, path.read_bytes())
    # Its folder may have had another name when the checkpoint was written.
    runs = dict.fromkeys((run.name, str(head["run"]), *parents(run)))
    origin = {"runs": [*runs], "round": round, "digest": head["digest"]}
    manifest = json.loads((run / MANIFEST).read_bytes()) | {BRANCH: origin}
    write_atomically(made / MANIFEST, as_document(manifest))
    with (run / ROUNDS).open("rb") as record:
        lines = record.read(head["record"]["bytes"])
    write_atomically(made / ROUNDS, lines)
    with suppress(FileNotFoundError):
        write_atomically(made / METRICS, _before(run / METRICS, round))
    config = settings_of(run)
    states, copy = states_folder(config, run), states_folder(config, made)
    if states is not None and copy is not None and states.is_dir():
        shutil.copytree(states, copy)
    theirs, ours = CheckpointFolder(run), CheckpointFolder(made)
    ours.path.mkdir(mode=0o700)
    try:
        os.link(theirs.file(round), ours.file(round))
    except OSError:  # another disk, or one without links
        write_atomically(ours.file(round), theirs.file(round).read_bytes())


def _before(metrics: Path, round: int) -> bytes:
    """The heading, and the lines of the rounds before this one."""
    heading, *lines = metrics.read_bytes().splitlines(keepends=True) or [b""]
    firsts = ((line.partition(b",")[0], line) for line in lines)
    return b"".join([heading, *(line for first, line in firsts if first.isdigit() and int(first) < round)])


def _alarm(folder: CheckpointFolder) -> int | None:
    """The round of the first of the last alarms, by the newest checkpoint that says it."""
    for round in folder.rounds():
        with suppress(StateFileError, OSError):
            match folder.head(round).get("alarms"):
                case {"first": int(first)}:
                    return first
                case _:
                    return None
    return None
