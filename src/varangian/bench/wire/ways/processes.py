"""The server and the workers of one transport in processes of their own, driven by commands over pipes."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, cast

from varangian.bench.wire.ways.base import Job, Server, Way, Workers
from varangian.bench.wire.ways.usage import Usage, processor_time, reset_peak

STILL = 120.0
"""Seconds without processor time after which a process counts as hung."""
LONGEST = 3600.0
"""Seconds for any command: on a busy machine a process may be slow without hanging."""
LOOK = 0.5
"""Seconds between two checks of the processor time of a process."""
START = multiprocessing.get_context("spawn")
"""Forked children would begin with the threads and the memory of the parent."""


class BrokenWay(Exception):
    """A transport does not work here."""


@dataclass(frozen=True)
class Cost:
    """Processor time in seconds and page faults of one process in one round."""

    cpu: float
    faults: int


@dataclass(frozen=True)
class Round:
    """One round of one transport."""

    seconds: float
    """Until the last worker knew that its vector had arrived."""
    whole: float
    """Until the server was done with the vectors."""
    server: Cost
    workers: Cost

    @property
    def cpu(self) -> float:
        return self.server.cpu + self.workers.cpu


class Side:
    """One process."""

    def __init__(
        self, role: Literal["server", "workers"], target: str, job: Job, address: str = ""
    ) -> None:
        self._role = role
        self._where = target
        self._pipe, theirs = START.Pipe()
        self._process = START.Process(target=_main, args=(role, target, job, address, theirs), daemon=False)
        self._process.start()
        theirs.close()

    def ask(self, what: str, *arguments: object) -> Any:
        """Send a command; returns its answer."""
        self._pipe.send((what, arguments))
        return self.answer(what)

    def answer(self, what: str) -> Any:
        self._wait(what)
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise BrokenWay(f"the {self._role} ended with {self._process.exitcode}") from None
        if kind == "error":
            raise BrokenWay(f"the {self._role} could not {what}: {answer}")
        return answer

    def _wait(self, what: str) -> None:
        """Wait for an answer, as long as the process uses processor time."""
        whole, still, before = 0.0, 0.0, processor_time(self._process.pid)
        while not self._pipe.poll(LOOK):
            now = processor_time(self._process.pid)
            whole, still, before = whole + LOOK, still + LOOK if now == before else 0.0, now
            if still >= STILL or whole >= LONGEST:
                idle = f", and has done nothing for {still:g} s" if still >= STILL else ""
                raise BrokenWay(f"the {self._role} could not {what} in {whole:g} s{idle}")

    def usage(self) -> Usage:
        return cast(Usage, self.ask("usage"))

    def close(self) -> None:
        with suppress(BrokenWay, OSError):
            self.ask("close")
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


class Pair:
    """Both processes of a transport: `connect`, then `begin`, then `round`; several can start at once."""

    def __init__(self, target: str, job: Job) -> None:
        self.job = job
        self._target = target
        self.server = Side("server", target, job)
        self.workers: Side | None = None
        self._rounds = 0

    def connect(self) -> None:
        """Wait for the server and start the workers.

        Raises:
            BrokenWay: it does not start.
        """
        address = self.server.answer("start")
        self.workers = Side("workers", self._target, self.job, address)

    def begin(self) -> None:
        """Wait for the workers; from now on memory counts.

        Raises:
            BrokenWay: they do not start.
        """
        self._ours.answer("start")
        self.server.ask("reset")
        self._before = self.server.usage()

    @property
    def _ours(self) -> Side:
        assert self.workers is not None
        return self.workers

    def round(self) -> Round:
        """One round, measured."""
        self._rounds += 1
        self.server.ask("ready")
        before = self.server.usage(), self._ours.usage()
        start, end = cast(tuple[float, float], self._ours.ask("round"))
        over = cast(float, self.server.ask("done") or end)
        after = self.server.usage(), self._ours.usage()
        server, workers = (
            Cost(b.cpu - a.cpu, b.faults - a.faults) for a, b in zip(before, after, strict=True)
        )
        return Round(end - start, over - start, server, workers)

    def pace(self, rate: float | None) -> None:
        """Limit all workers together to so many bytes a second; None lifts the limit."""
        self._ours.ask("pace", rate)

    def check(self) -> str | None:
        """Compare digests after a round; returns what differs, None if nothing does."""
        expected = load_way(self._target).expected(self.job, self._rounds)
        found = self.server.ask("digests") or self._ours.ask("digests")
        wrong = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
        return f"what arrived from worker {wrong[0]} is not what it sent" if wrong else None

    def peak_payloads(self) -> float:
        """The server's peak of memory beyond what it had before the first round, in payloads."""
        return (self.server.usage().peak - self._before.resident) / self.job.size

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
        self.server.close()


def load_way(target: str) -> Way:
    """Build the transport that `module:Class` names; more colons separate arguments."""
    module, name, *arguments = target.split(":")
    kind = getattr(importlib.import_module(f"varangian.bench.wire.ways.{module}"), name)
    return cast(Way, kind(*arguments))


def _main(role: str, target: str, job: Job, address: str, pipe: Connection) -> None:
    """Entry point of a process: start, perform commands, end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes both
    side: Server | Workers
    try:
        way = load_way(target)
        side = way.serve(job) if role == "server" else way.connect(address, job)
        pipe.send(("ok", getattr(side, "address", None)))
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        return
    commands: dict[str, Callable[..., Any]] = {
        "ready": lambda: cast(Server, side).ready(),
        "done": getattr(side, "done", lambda: None),
        "pace": getattr(side, "pace", lambda _: None),
        "round": lambda: _time(cast(Workers, side).round),
        "digests": side.digests,
        "usage": Usage.now,
        "reset": reset_peak,
        "close": side.close,
    }
    what = ""
    while what != "close":
        try:
            what, arguments = pipe.recv()
        except EOFError:
            what, arguments = "close", ()
        try:
            answer = ("ok", commands[what](*arguments))
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return


def _time(work: Callable[[], None]) -> tuple[float, float]:
    """Begin and end by `perf_counter`, a clock that all processes share."""
    start = time.perf_counter()
    work()
    return start, time.perf_counter()
