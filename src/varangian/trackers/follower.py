"""Followers: a thread for each tracker of a run, behind a bounded queue.

The run hands over records and goes on. Whatever a tracker does costs lines of its own and nothing else:

it raises an error       said once; the line is lost and counted, and the next is tried after a pause
it is slow, or hangs     the queue fills, then its oldest lines are dropped and counted
it never begins          its beginning is tried again, unless it says that this is of no use
it does not take the end said after some seconds; its thread ends with the process
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from varangian.files import write_atomically
from varangian.own_classes import target_of
from varangian.plugins import describe_error
from varangian.protos.text import escape
from varangian.server.observability.record import RoundRecord
from varangian.trackers.base import TRACKERS, RunFacts, Tracker, TrackerError, Tracking
from varangian.trackers.weights import WeightTable

KEPT = "trackers.json"
"""The file in the run folder with what trackers keep of a run."""
RECORDS, WEIGHTS = 1000, 1_000_000
"""Records that may wait for a tracker, and the weights of workers in all of them."""
PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds after an error until the next attempt: twice as long after each further one, to the longest."""
SHARE, BURST = 0.25, 0.01
"""The share of one processor that the thread of a tracker takes while the run goes on, and the seconds of
it after which it rests: Python lets one thread at a time compute, and the run should be the one."""
LONGEST = 500
"""Characters of what a tracker says."""
SOON = 2.0
"""Seconds of waiting after which it is said what is waited for."""
END, END_AFTER_SIGNAL = 60.0, 3.0
"""Seconds that the end of a run waits for all trackers; less after a signal, whose sender waits, too."""

Note = Callable[[str], None]


class Followers:
    """The trackers of one run.

    Args:
        trackers: in the order of the configuration.
        run: what they are told; what each has kept is added to it.
        note: takes sentences about them; called from any thread.
    """

    def __init__(self, trackers: Iterable[Tracker] | None, run: RunFacts, note: Note) -> None:
        self._all, kept = list[Follower](), _Kept(run.folder / KEPT, note)
        for tracker in trackers or ():
            name = _unlike([follower.name for follower in self._all], TRACKERS.name(tracker))
            facts = replace(run, kept=kept.of(name), keep=kept.keeper(name))
            self._all.append(Follower(tracker, name, facts, note))
        self._begun = self._over = False

    def __len__(self) -> int:
        return len(self._all)

    def begin(self) -> None:
        """Begin the run in each tracker; returns at once. Before it nothing is taken."""
        self._begun = True
        for follower in self._all:
            follower.begin()

    def round(self, record: RoundRecord) -> None:
        """Queue the record of a round; returns at once."""
        for follower in self._all if self._begun else ():
            follower.round(record)

    def end(self, result: Mapping[str, Any]) -> None:
        """Queue the end of the run; returns at once. The first end counts."""
        if not self._over:
            self._over = True
            for follower in self._all:
                follower.end(result)

    def close(self, seconds: float = END) -> None:
        """Wait until the trackers have taken all of it, and say what they have not."""
        until = time.monotonic() + seconds
        for follower in self._all:
            follower.close(until)


class Follower:
    """One tracker, in a thread of its own."""

    def __init__(self, tracker: Tracker, name: str, run: RunFacts, note: Note) -> None:
        self.name, self.lost, self.rounds = name, 0, 0
        self._tracker, self._run, self._note = tracker, run, note
        self._limit = min(RECORDS, max(1, WEIGHTS // max(1, len(run.workers))))
        self._queue = deque[RoundRecord]()
        self._result: Mapping[str, Any] | None = None
        self._table = WeightTable()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name=f"tracker {name}", daemon=True)
        self._closing = self._said = self._useless = False
        self._pause, self._unsent = PAUSE, 0

    def begin(self) -> None:
        self._thread.start()

    def round(self, record: RoundRecord) -> None:
        with self._changed:
            self.rounds += 1
            if self._useless:
                self.lost += 1
                return
            self._queue.append(record)
            if len(self._queue) > self._limit:
                self._queue.popleft()
                self.lost += 1
            self._changed.notify_all()

    def end(self, result: Mapping[str, Any]) -> None:
        with self._changed:
            self._result = result
            self._changed.notify_all()

    def close(self, until: float) -> None:
        """Wait for the thread until a moment of the monotonic clock, and say what is lost."""
        if self._thread.ident is None:  # the run did not begin
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        left = max(0.0, until - time.monotonic())
        self._thread.join(min(SOON, left))
        if self._thread.is_alive() and left > SOON:
            self._note(f"waiting for tracker {self.name}, at most {left:.0f} s")
            self._thread.join(left - SOON)
        late = self._thread.is_alive()
        if late:
            self._note(f"warning: tracker {self.name} has not taken the end of the run in time")
        if lost := self.lost + self._unsent + (len(self._queue) if late else 0):
            self._note(f"warning: tracker {self.name} lacks {lost} of {self.rounds} rounds")

    def _follow(self) -> None:
        tracking = self._begun()
        if tracking is None:
            self._give_up()
            return
        if isinstance(place := self._read(tracking, "shown_at"), str):
            self._note(f"tracker {self.name}: {escape(place, LONGEST)}")
        rested = time.thread_time()
        while (record := self._next(tracking)) is not None:
            self._table.add(record.round, record.weights)
            if not self._attempt(tracking.round, record):
                with self._changed:
                    self.lost += 1
            if self._useless:
                self._give_up()
                return
            if (used := time.thread_time() - rested) > BURST:
                self._wait((1 / SHARE - 1) * used)
                rested = time.thread_time()
        if self._result is not None:
            self._option(tracking, "flush")
            if len(self._table):
                self._option(tracking, "weights", self._table)
            self._attempt(tracking.end, self._result)
        unsent = self._read(tracking, "unsent")
        self._unsent = unsent if isinstance(unsent, int) else 0

    def _give_up(self) -> None:
        with self._changed:
            self._useless = True
            self.lost += len(self._queue)
            self._queue.clear()

    def _begun(self) -> Tracking | None:
        """What follows the run; None if there is no use in trying."""
        if self._run.following:
            self._table.read(self._run.folder / "rounds.jsonl", self._run.following)
        begun = list[Tracking]()
        while not begun:
            last = self._closing
            if not self._attempt(lambda: begun.append(self._tracker.begin(self._run))) and (
                last or self._useless
            ):
                return None
        return begun[0]

    def _next(self, tracking: Tracking) -> RoundRecord | None:
        """The next record; None when there will be none."""
        with self._changed:
            waits = bool(self._queue)
        if not waits:
            self._option(tracking, "flush")
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing or self._result is not None)
            return self._queue.popleft() if self._queue else None

    def _option(self, tracking: Tracking, name: str, *arguments: Any) -> None:
        """Call a method that a tracker need not have."""
        method = self._read(tracking, name)
        if callable(method):
            self._attempt(method, *arguments)

    def _read(self, tracking: Tracking, name: str) -> Any:
        found = list[Any]()
        self._attempt(lambda: found.append(getattr(tracking, name, None)))
        return found[0] if found else None

    def _attempt(self, call: Callable[..., Any], *arguments: Any) -> bool:
        """Call the tracker; whether it went well. After an error it pauses, unless the run is over."""
        try:
            call(*arguments)
        except BaseException as error:  # its thread has nobody else to tell
            self._failed(error)
            return False
        self._pause = PAUSE
        return True

    def _failed(self, error: BaseException) -> None:
        self._useless = self._useless or isinstance(error, TrackerError)
        if not self._said:
            self._said = True
            target = target_of(type(self._tracker)) or ""
            what = str(error) if self._useless else describe_error(error, target)
            what = escape(what, LONGEST).rstrip(".")  # it may be the answer of a server
            self._note(f"warning: tracker {self.name} failed: {what}. The run goes on")
        if not self._useless:
            self._wait(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _wait(self, seconds: float) -> None:
        """Wait, but not when the run is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)


class _Kept:
    """The file with what trackers keep: a mapping for each by its name."""

    def __init__(self, path: Path, note: Note) -> None:
        self._path, self._note, self._lock = path, note, threading.Lock()
        self._content = _strings(path)

    def of(self, name: str) -> Mapping[str, str]:
        return dict(self._content.get(name, {}))

    def keeper(self, name: str) -> Callable[[str, str], None]:
        def keep(key: str, value: str) -> None:
            with self._lock:
                self._content.setdefault(name, {})[key] = value
                try:
                    content = json.dumps(self._content, indent=2).encode() + b"\n"
                    write_atomically(self._path, content)
                except (OSError, TypeError, ValueError) as error:
                    self._note(
                        f"warning: {self._path} cannot be written ({error}); a run that goes on will be "
                        f"another one in tracker {name}"
                    )

        return keep


def _strings(path: Path) -> dict[str, dict[str, str]]:
    """What is kept in a file, as far as it has the form that it should have."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        str(name): {str(key): value for key, value in values.items() if isinstance(value, str)}
        for name, values in found.items()
        if isinstance(values, dict)
    }


def _unlike(names: Iterable[str], name: str) -> str:
    """A name that is not among these: `wandb`, `wandb 2`."""
    taken, number, new = {*names}, 1, name
    while new in taken:
        number += 1
        new = f"{name} {number}"
    return new
