"""The states of one part of a worker's history: the newest, and those that a server may go back to.

A state of round l is that of the border of round c, the moment before anything of c counts, if no round
between them was computed: l < c <= until. That of c itself will do, too: it has the vector of c, which is
sent again as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

from varangian.protos.contract import Terms
from varangian.state_file import StateFileError, Tree
from varangian.worker.checkpoints.slots import Label, Slot, slots_of

SPARE = 2
"""Borders beyond those of the checkpoints that a server keeps: so far it may be ahead of its disk."""
LINE = "line@"
"""The name of a part begins so where sending its last vector once more changes it."""
MOST_BORDERS = 300
"""Borders in one label: of a worker that was away for long, the last of them."""


@dataclass(frozen=True)
class Restored:
    """A state that was found."""

    label: Label
    tree: Any


def borders(every: int, after: int, upto: int, resumed_at: int) -> tuple[int, ...]:
    """Rounds c, after < c <= upto, at which a server is or can be resumed.

    Args:
        every: it keeps a checkpoint at multiples of this; 0: none.
        after: a round.
        upto: a later round.
        resumed_at: the round that it was resumed at.
    """
    multiples = range((after // every + 1) * every, upto + 1, every) if every else ()
    return tuple(sorted({*multiples, *(c for c in (resumed_at,) if after < c <= upto)}))


class PartStore:
    """Slots with the states of one part, as many as there are borders to keep, and two to write in turn.

    Not to be used from two threads at once.

    Args:
        folder: of its own, by the name of the part; it is made with the first state.
        sync: called with the path of a slot whose state is to stay, so that it is on the disk in time.
    """

    def __init__(self, folder: Path, *, sync: Callable[[Path], object] = lambda path: None) -> None:
        self._folder, self._again, self._sync = folder, not _is_line(folder), sync
        self._slots = {slot: slot.label() for slot in slots_of(folder)}
        self._run, self._terms = "", Terms()

    def put(self, round: int, tree: Tree, spared: Slot | None = None) -> None:
        """Keep the state after a round, before its vector is pushed.

        Args:
            round: the last that is in it.
            tree: the state.
            spared: a slot that is not written over.

        Raises:
            OSError: it cannot be written; the one before is still there.
            TypeError: something in the tree cannot be kept.
        """
        terms, newest = self._terms, self._newest()
        if newest is not None:
            before = self._label(newest)
            found = borders(terms.every, before.round, round, terms.resumed_at)
            kept = tuple(sorted({*before.borders, *found}))[-MOST_BORDERS:]
            self._relabel(newest, replace(before, until=round, borders=kept))
            if found:
                self._sync(newest.path)
        order = 1 + max((label.order for label in self._slots.values() if label), default=0)
        slot = self._free((newest, spared), round)
        self._slots[slot] = None
        self._slots[slot] = slot.write(Label(self._run, terms.epoch, round, order), tree)

    def confirm(self, round: int) -> None:
        """Note that the server has counted the vector of a round.

        Raises:
            OSError: it cannot be written.
        """
        if (newest := self._newest()) is not None:
            self._relabel(newest, replace(self._label(newest), confirmed=round))

    def end(self, round: int) -> None:
        """Note that the state after a round is not kept, so that the one before is not taken for it.

        Raises:
            OSError: it cannot be written.
        """
        if (newest := self._newest()) is not None:
            self._relabel(newest, replace(self._label(newest), until=round, final=True))

    def rewind(self, run: str, terms: Terms, round: int, elsewhere: Sequence[Slot] = ()) -> Restored | None:
        """Go back to the state from which the first round with this start of a server is computed.

        The server has gone on from `terms.resumed_at`, with what it knew there; what was computed for an
        earlier start is no part of that. Later states are dropped.

        Args:
            run: the name of the run.
            terms: of this start of its server.
            round: that the server is in.
            elsewhere: slots of the run that this one is a branch of, if they are in another folder.

        Returns:
            None if there is none of the right round.
        """
        self._run, self._terms = run, terms
        if (newest := self._newest()) is not None:
            same = self._label(newest).epoch == terms.epoch
            return self._go_back(round if same else terms.resumed_at)
        if not terms.parent:
            return None
        labels = [*self._slots.items(), *((slot, slot.label()) for slot in elsewhere)]
        found = self._find(((s, label) for s, label in labels), terms.parent, terms.resumed_at)
        if found is not None:
            self.put(found[1].label.round, found[1].tree, spared=found[0])
        return None if found is None else found[1]

    def tidy(self) -> None:
        """Delete all states but the newest and those of the last checkpoints that the server has kept.

        Raises:
            OSError: one cannot be deleted.
        """
        terms, newest = self._terms, self._newest()
        if newest is None:
            return
        last = self._label(newest).round + 1
        rounds = borders(terms.every, 0, last, terms.resumed_at)
        keep_states(self._folder, self._run, rounds[max(0, len(rounds) - terms.keep) :])

    def knows(self, run: str) -> bool:
        """Whether there is any state of a run."""
        return any(label is not None and label.run == run for label in self._slots.values())

    def _go_back(self, to: int) -> Restored | None:
        found = self._find(self._slots.items(), self._run, to)
        last = to if found is None else found[1].label.order
        for slot, label in self._slots.items():
            if label is not None and label.run == self._run:
                later = label.round > to if found is None else label.order > last
                if later:
                    self._relabel(slot, replace(label, run=""))
        if found is not None:
            slot, restored = found
            self._relabel(slot, replace(restored.label, until=None, final=False))
            return restored
        if (newest := self._newest()) is not None:
            self._relabel(newest, replace(self._label(newest), final=True))
        return None

    def _find(
        self, slots: Iterable[tuple[Slot, Label | None]], run: str, to: int
    ) -> tuple[Slot, Restored] | None:
        """The newest state that is that of the border of a round."""
        for slot, label in of_border(slots, run, to, again=self._again):
            with suppress(OSError, StateFileError):  # damaged: there may be another one of this round
                return slot, Restored(label, slot.read(label))
        return None

    def _free(self, spared: Sequence[Slot | None], round: int) -> Slot:
        """The slot to write over: the oldest of those that are not needed, or a new one."""
        terms = self._terms
        last = round - round % terms.every if terms.every else 0
        floor = last - (terms.keep + SPARE - 1) * terms.every
        free = [
            (label.order if label else 0, slot)
            for slot, label in self._slots.items()
            if slot not in spared and not (label and self._is_needed(label, floor))
        ]
        if free:
            return min(free, key=lambda pair: pair[0])[1]
        for folder in (self._folder.parent, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = {slot.path.name for slot in self._slots}
        name = next(f"slot-{k}" for k in range(len(taken) + 1) if f"slot-{k}" not in taken)
        return Slot(self._folder / name)

    def _is_needed(self, label: Label, floor: int) -> bool:
        """Whether a state is that of a border to which the server may go back."""
        resumed_at = self._terms.resumed_at
        return label.run == self._run and any(c >= floor or c == resumed_at for c in label.borders)

    def _newest(self) -> Slot | None:
        """The slot with the newest state of the run."""
        newest, order = None, -1
        for slot, label in self._slots.items():
            if label is not None and label.run == self._run and label.order > order:
                newest, order = slot, label.order
        return newest

    def _label(self, slot: Slot) -> Label:
        label = self._slots[slot]
        assert label is not None
        return label

    def _relabel(self, slot: Slot, label: Label) -> None:
        slot.relabel(label)
        self._slots[slot] = label


def of_border(
    slots: Iterable[tuple[Slot, Label | None]], run: str, to: int, *, again: bool
) -> Iterator[tuple[Slot, Label]]:
    """The states of a run that are that of the border of a round, the newest first.

    Args:
        slots: of one part, with their labels.
        run: its name.
        to: the round.
        again: whether the state of the round itself will do.
    """
    ours = [(slot, label) for slot, label in slots if label is not None and label.run == run]
    ours.sort(key=lambda pair: -pair[1].order)
    for place, (slot, label) in enumerate(ours):
        ends = label.until if place > 0 or label.final else None
        until = inf if ends is None else ends
        if label.round < to <= until or (again and label.round == to):
            yield slot, label


def has_state(folder: Path, run: str, round: int) -> bool:
    """Whether the state of a part for the border of a round is there, as its labels say."""
    slots = [(slot, slot.label()) for slot in slots_of(folder)]
    return any(of_border(slots, run, round, again=not _is_line(folder)))


def keep_states(folder: Path, run: str, rounds: Iterable[int]) -> None:
    """Delete the states of a part but the newest and those of the borders of these rounds.

    Raises:
        OSError: one cannot be deleted.
    """
    slots = [(slot, slot.label()) for slot in slots_of(folder)]
    newest = sorted(slots, key=lambda pair: -pair[1].order if pair[1] else 1)[:1]
    kept = {slot for slot, _ in newest}
    for round in rounds:
        kept |= {slot for slot, _ in islice(of_border(slots, run, round, again=not _is_line(folder)), 1)}
    for slot, _ in slots:
        if slot not in kept:
            slot.path.unlink(missing_ok=True)


def _is_line(folder: Path) -> bool:
    return folder.name.startswith(LINE)
