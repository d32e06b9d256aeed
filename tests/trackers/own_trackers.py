"""Trackers of a user: good ones, and bad ones of every kind."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

from varangian.trackers import TrackerError


@dataclass(frozen=True)
class Lines:
    """Writes what it is told as lines of JSON; its own follower of a run."""

    path: str

    def begin(self, run):
        self._say("begin", run.id, run.following, dict(run.kept), run.settings["rounds"])
        run.keep("id", run.kept.get("id", "made"))
        return self

    def round(self, record):
        self._say("round", record.round, record.loss)

    def weights(self, table):
        self._say("weights", list(table.workers), len(table))

    def end(self, result):
        self._say("end", result["outcome"], result["rounds"])

    def _say(self, *what):
        with Path(self.path).open("a") as file:
            file.write(json.dumps(what) + "\n")


class Failing:
    """Fails in the methods that it is told to, the first times or always."""

    def __init__(self, where: str = "begin", times: int = 1_000_000):
        self.where, self.times = where, times
        self.failed, self.rounds, self.ends = 0, [], []
        self.began = threading.Event()

    def begin(self, run):
        self._fail("begin")
        self.began.set()
        return self

    def round(self, record):
        self._fail("round")
        self.rounds.append(record.round)

    def flush(self):
        self._fail("flush")

    def weights(self, table):
        self._fail("weights")

    def end(self, result):
        self._fail("end")
        self.ends.append(result)

    def _fail(self, where):
        if where in self.where.split() and self.failed < self.times:
            self.failed += 1
            raise RuntimeError(f"no {where}\x1b[31m")


class Leaving(Failing):
    """Ends the process, as it thinks."""

    def begin(self, run):
        raise SystemExit("good-bye")


class Useless(Failing):
    """Cannot work as it is set up."""

    def begin(self, run):
        self.failed += 1
        raise TrackerError("there is no login. Use `login`")


class Hanging(Failing):
    """Hangs in a method until it is let go."""

    def __init__(self, where: str = "round"):
        super().__init__("")
        self.hangs, self.there, self.go = where, threading.Event(), threading.Event()

    def _fail(self, where):
        if where == self.hangs:
            self.there.set()
            self.go.wait()


@dataclass(frozen=True)
class Stuck:
    """Hangs for ever, as soon as the run begins."""

    seen: list = field(default_factory=list, init=False)

    def begin(self, run):
        threading.Event().wait()


class NoTracker:
    """Has none of the methods."""
