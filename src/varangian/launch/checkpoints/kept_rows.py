"""Kept rows: the last rounds as the rule saw them, from which an audit computes them again.

Each is one state file, `rows/round-000057.safetensors`: the rows, and the state of the learner before the
round. So a round can be computed again by itself.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from varangian import state_file
from varangian.aggregators import Mixing
from varangian.aggregators.mixings.scaled import Scaled
from varangian.launch.result import Note
from varangian.server.protocol.events import Close
from varangian.server.rows.source import StepInput
from varangian.state_file import StateFileError, flatten, unflatten

FOLDER = "rows"
VERSION = 1
NAME = re.compile(r"round-(\d{6,})\.safetensors")


class KeptRows:
    """Writes the rows of the last rounds, before the rule sees them, without a copy in memory.

    What cannot be written is said once, and the run goes on.

    Args:
        run: the folder of the run.
        keep: how many rounds.
        shapes: of the parameter tensors.
        note: takes sentences; called from any thread.
    """

    def __init__(self, run: Path, keep: int, shapes: Sequence[Sequence[int]], note: Note) -> None:
        self._folder, self._keep = run / FOLDER, keep
        self._shapes, self._note = [[*shape] for shape in shapes], note
        self._failed = False

    def __call__(self, close: Close, inputs: StepInput, learner: Mapping[str, Any]) -> None:
        """Keep the input of a step. Called in the compute thread, before the step."""
        try:
            self._write(close, inputs, learner)
        except Exception as error:
            # Also of a rule of the user: a run is worth more than what is kept of it.
            if not self._failed:
                self._failed = True
                reason = (
                    error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
                )
                what = f"the vectors of round {close.round} cannot be kept ({reason})"
                self._note(f"warning: {what}; the run goes on")

    def _write(self, close: Close, inputs: StepInput, learner: Mapping[str, Any]) -> None:
        # Inner products of fragments can be measured again from the rows, and from those of the others.
        given = inputs.measure if inputs.earlier is None else None
        measured = None if given is None else given(learner["reference"])
        kept = {
            "rows": inputs.rows,
            "faults": close.faults,
            "factors": _factors(inputs.mix),
            "measured": measured,
            "earlier": inputs.earlier,
            "fresh": None if inputs.fresh is None else sorted(inputs.fresh),
            "aggregated": inputs.aggregation is not None,
            "buffers": inputs.buffers,
            "blocks": [math.prod(shape) for shape in self._shapes],
            "shapes": self._shapes,
            "learner": learner,
        }
        plain, tensors = flatten(kept)
        dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._folder.mkdir(mode=0o700, exist_ok=True)
        known = {"version": VERSION, "round": close.round, "state": plain}
        state_file.write(file_of(self._folder, close.round), known, dense)
        for round, path in _files(self._folder):
            if not close.round - self._keep < round <= close.round:  # later ones are of an earlier start
                with contextlib.suppress(OSError):
                    path.unlink()


@dataclass(frozen=True)
class KeptRound:
    """The input of a step, as it was kept."""

    rows: Mapping[str, Tensor]
    faults: Mapping[str, str]
    mix: tuple[Mixing, ...]
    measured: Tensor | None
    fresh: frozenset[str] | None
    aggregated: bool
    """Whether the update was made from a running sum, and not from these rows."""
    blocks: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...] | None
    """None in a file from before they were kept."""
    learner: Mapping[str, Any]
    """The state of the learner before it."""
    buffers: Mapping[str, Tensor] | None = None
    """(b,) of each worker; None where no buffers travel."""
    earlier: Mapping[str, Any] | None = None
    """With fragments the inner products of the latest rows of each before the round."""

    @property
    def buffer_count(self) -> int:
        """How many numbers of the parameters, the last ones, are buffers."""
        return 0 if not self.buffers else next(iter(self.buffers.values())).numel()

    @classmethod
    def read(cls, path: Path, round: int) -> KeptRound:
        """Read the file of a round, all of it checked.

        Raises:
            StateFileError: it is none of kept rows, or damaged.
            OSError: it cannot be read.
        """
        found = state_file.read(path)
        if found.plain.get("version") != VERSION or found.plain.get("round") != round:
            raise StateFileError(path, f"it has no rows of round {round}")
        try:
            kept = unflatten(found.plain["state"], found.tensors)
            factors, fresh = kept["factors"], kept["fresh"]
            return cls(
                rows=kept["rows"],
                faults=kept["faults"],
                mix=() if factors is None else (Scaled(tuple(factors)),),
                measured=kept["measured"],
                fresh=None if fresh is None else frozenset(fresh),
                aggregated=kept["aggregated"],
                blocks=tuple(kept["blocks"]),
                shapes=None if "shapes" not in kept else tuple(map(tuple, kept["shapes"])),
                learner=kept["learner"],
                buffers=kept.get("buffers"),
                earlier=kept.get("earlier"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StateFileError(path, f"its content is not as it should be ({error!r})") from error


def kept_rounds(run: Path) -> dict[int, Path]:
    """The files of kept rows of a run, by round, in order."""
    return dict(sorted(_files(run / FOLDER)))


def file_of(folder: Path, round: int) -> Path:
    """The file of a round in the folder of kept rows."""
    return folder / f"round-{round:06}.safetensors"


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    with contextlib.suppress(OSError):
        for path in [*folder.iterdir()]:
            if found := NAME.fullmatch(path.name):
                yield int(found[1]), path


def _factors(mix: Sequence[Mixing]) -> list[float] | None:
    """The staleness weights of the rows; None where all count alike."""
    match mix:
        case ():
            return None
        case (Scaled(factors),):
            return [*factors]
        case _:
            raise TypeError(f"The mixings of one round should be factors. Found {mix!r}.")
