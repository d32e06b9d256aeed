"""The keeper of checkpoints: copies the state between two rounds, and writes it in a thread of its own."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from varangian.config.settings import Checkpoints
from varangian.launch.checkpoints.alarms import Alarms
from varangian.launch.checkpoints.folder import VERSION, CheckpointFolder, Origin, Score, to_keep
from varangian.launch.checkpoints.lock import FolderLock
from varangian.launch.output.run_folder import RecordPlace, RunFolder
from varangian.launch.result import Note
from varangian.server.observability.record import RoundRecord
from varangian.server.rounds.checkpointing import Plain, ServerState
from varangian.server.training.parameters import Version
from varangian.state_file import Draft, flatten

T = TypeVar("T")

PARAMETERS = "learner/parameters"
FINITE = ("learner/", "rows/")
"""The tensors that are to be finite. Vectors that wait for their round are as their workers sent them."""


PATIENCE = 60.0
"""Seconds for which a round waits for the checkpoint before."""
NOTICED = 1.0
"""Seconds of waiting that are worth a word."""
STRIP = 1 << 20
"""Numbers that are looked at together."""


class CheckpointKeeper:
    """The keeper of the checkpoints of one run.

    A checkpoint is visible only when the lines of all rounds before it are on the disk. Whatever fails is
    said once, older checkpoints stay, and the next one is tried again.

    Args:
        run: the folder of the run.
        checkpoints: which are kept.
        every: rounds from one to the next.
        rounds: of the run.
        origin: of the checkpoints.
        note: takes sentences; called from any thread.
        lock: of the folder; made again with it, should somebody delete it.
        own: the state of the run besides that of its server, as a tree by name.
        without_copy: whether the state is written by whoever hands it over, and not copied: where memory
            has no room for a copy.
        before: what the checkpoint that the run goes on from says of itself.
    """

    def __init__(
        self,
        run: RunFolder,
        checkpoints: Checkpoints,
        every: int,
        rounds: int,
        origin: Origin,
        note: Note,
        *,
        lock: FolderLock | None = None,
        own: Callable[[], Plain | None] = dict,
        without_copy: bool = False,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        self._run, self._checkpoints, self._every, self._rounds = run, checkpoints, every, rounds
        self._origin, self._note, self._lock = origin, note, lock
        self._own, self._without_copy = own, without_copy
        self._folder = CheckpointFolder(run.path)
        self._folder.tidy()
        self._alarms = Alarms(every)
        self._score: Score | None = None
        self._scores: dict[int, Score | None] = {}
        """Of the checkpoints that count: not those behind the one that the run goes on from, if any."""
        self.latest: tuple[int, float] | None = None
        """The newest checkpoint, and when it was complete in seconds since 1970; None if there is none."""
        if before is not None:
            self._alarms.restore(before["alarms"])
            self._score = Score.of(before["score"])
            found = self._folder.scores()
            self._scores = {round: score for round, score in found.items() if round <= before["round"]}
            self.latest = before["round"], self._folder.file(before["round"]).stat().st_mtime
        self._copies: dict[str, Tensor] = {}
        self._writing: threading.Thread | None = None
        self._began = 0.0
        self._late = self._hangs = self._not_finite = self._failing = False

    @property
    def newest(self) -> int | None:
        """The round of the newest checkpoint that is written; None if there is none."""
        return max(self._scores, default=None)

    def due(self, following: int, record: RoundRecord) -> bool:
        """Every so many rounds, and after the last.

        A run of fewer rounds than that, which was never stopped, is done again as quickly.
        """
        self._alarms.look(record)
        self._take_score(record)
        if following == self._rounds:
            return self._rounds >= self._every or bool(self._scores)
        return following % self._every == 0

    def keep(self, state: ServerState, more: Plain) -> None:
        """Copy a state, after the one before is written; an error ends no run.

        Rounds wait for the one before, as workers keep their own states for the last checkpoints alone, and
        count on them. A disk that hangs is waited for once, and not for long.
        """
        waited = self._waited()
        if self._writing is not None:
            self._say_late(
                f"has taken more than {waited:.0f} s, so that of round {state.round} is left out"
            )
            return
        if waited > NOTICED:
            self._say_late(f"takes {waited:.0f} s longer than {self._every} rounds, which wait for it")
        self._began = time.monotonic()
        begun = self._carefully(state.round, lambda: self._begin(state, more))
        if begun is not None:
            self._writing = threading.Thread(
                target=self._carefully,
                args=(state.round, begun),
                name=f"checkpoint of round {state.round}",
                daemon=True,  # a process that is told to end at once does not wait: nothing is half there
            )
            self._writing.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until what was handed over is written, or has failed; not for longer than a round does."""
        if self._writing is not None:
            self._writing.join(PATIENCE if seconds is None else seconds)
            if not self._writing.is_alive():
                self._writing = None

    def _waited(self) -> float:
        """Wait for the checkpoint before, and return for how many seconds."""
        began = time.monotonic()
        self.wait(0 if self._hangs else None)
        self._hangs = self._writing is not None
        return time.monotonic() - (began if self._writing is None else self._began)

    def _say_late(self, text: str) -> None:
        if not self._late:
            self._late = True
            hint = "a larger server.checkpoint.every leaves more time"
            self._note(f"warning: a checkpoint {text}; {hint}")

    def _begin(self, state: ServerState, more: Plain) -> Callable[[], None]:
        """What has to be done before the state changes; returns the rest, for a thread."""
        plain, tensors = flatten({**state.tree, "run": self._own(), **more})
        known = {"round": state.round, "score": self._score and self._score.plain(), "state": plain}
        known["alarms"] = self._alarms.plain()
        checkpoint = _Checkpoint(state.round, self._score, self._alarms.first, self._run.place, known)
        if self._without_copy:
            draft = self._draft(checkpoint, tensors, state.version)
            return lambda: self._publish(checkpoint, draft)
        copies, version = self._copied(tensors), state.version
        return lambda: self._publish(checkpoint, self._draft(checkpoint, copies, version))

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies in the memory of the last ones: new memory costs five times a copy."""
        for name in tensors.keys() - {PARAMETERS}:  # which are not changed as long as their version is held
            tensor, copy = tensors[name], self._copies.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._copies[name] = copy.copy_(tensor.detach())
        self._copies = {name: self._copies[name] for name in tensors if name != PARAMETERS}
        return {name: self._copies.get(name, tensor) for name, tensor in tensors.items()}

    def _draft(self, checkpoint: _Checkpoint, tensors: Mapping[str, Tensor], version: Version) -> Draft:
        """The file of a checkpoint, under a temporary name.

        Args:
            checkpoint: what it is.
            tensors: of the state.
            version: the parameters among them, which are not changed as long as this is held.

        Raises:
            _NotFinite: the state is none to go on from.
            OSError: it cannot be written.
        """
        if not all(_is_finite(tensor) for name, tensor in tensors.items() if name.startswith(FINITE)):
            raise _NotFinite
        self._run.restore()
        if self._lock is not None:
            self._lock.restore()
        self._folder.path.mkdir(mode=0o700, exist_ok=True)
        known = {
            "version": VERSION,
            **self._origin.plain(),
            **checkpoint.known,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "digest": hashlib.blake2b(version.payload, digest_size=16).hexdigest(),
            "record": {
                "bytes": checkpoint.place.bytes,
                "lines": checkpoint.place.lines,
                "digest": checkpoint.place.head,
            },
        }
        return Draft(self._folder.file(checkpoint.round), known, tensors)

    def _publish(self, checkpoint: _Checkpoint, draft: Draft) -> None:
        """Put a checkpoint in its place behind the record, and remove those that are not kept."""
        try:
            self._run.sync(checkpoint.place)
            draft.publish()
        finally:
            draft.discard()
        self._scores[checkpoint.round] = checkpoint.score
        self.latest = checkpoint.round, time.time()
        kept = to_keep(self._scores, self._checkpoints.keep, checkpoint.alarm)
        self._folder.prune(kept, checkpoint.round)
        self._scores = {round: self._scores[round] for round in kept}
        if self._failing:
            self._note(f"checkpoints can be written again: the newest is that of round {checkpoint.round}")
        self._failing = self._not_finite = False

    def _carefully(self, round: int, action: Callable[[], T]) -> T | None:
        """What the action returns; None if it fails, which is said when it did not fail before."""
        try:
            return action()
        except _NotFinite:
            said, self._not_finite = self._not_finite, True
            text = f"the state after round {round - 1} is not finite and was not kept; {self._newest_one}"
        except Exception as error:
            # Of code of the user, too: a run is worth more than its checkpoint.
            said, self._failing = self._failing, True
            reason = (
                error.strerror
                if isinstance(error, OSError)
                else f"{type(error).__name__}: {error}".rstrip(".")
            )
            what = f"the checkpoint of round {round} cannot be written ({reason})"
            text = f"{what}; the run goes on, and {self._newest_one}"
        if not said:
            self._note(f"warning: {text}")
        return None

    @property
    def _newest_one(self) -> str:
        newest = self.newest
        return "there is none yet" if newest is None else f"the newest checkpoint is that of round {newest}"

    def _take_score(self, record: RoundRecord) -> None:
        best = self._checkpoints.best
        for name in () if best is None else (best, "loss"):
            value = _score(record, name)
            if value is not None:
                self._score = Score(name, value, record.round) if math.isfinite(value) else None
                return


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint that is being written."""

    round: int
    score: Score | None
    alarm: int | None
    """The first round of the last alarms."""
    place: RecordPlace
    """The place of its border in the record of rounds."""
    known: Mapping[str, Any]
    """What it says of itself."""


class _NotFinite(Exception):
    """A state with numbers that are not finite."""


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or all(
        bool(part.isfinite().all()) for part in tensor.reshape(-1).split(STRIP)
    )


def _score(record: RoundRecord, name: str) -> float | None:
    """The score of this name in a record; None in a round without it."""
    scores = {**record.scores._asdict(), **(record.metrics or {})}
    value = scores.get(name)
    return value if isinstance(value, float | int) else None
