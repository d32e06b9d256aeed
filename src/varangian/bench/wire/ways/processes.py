"""A server and its workers, each in a process of its own, moved by commands over pipes."""

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

from varangian.bench.wire.ways.base import Hop, Job, Server, Workers
from varangian.bench.wire.ways.usage import Usage, processor_time, reset_peak

STILL = 120.0
"""Seconds without processor time after which a process has hung: a benchmark should say where it does."""
LONGEST = 3600.0
"""Seconds for any command. On a busy machine a process may be slow, but it does not stand still."""
LOOK = 0.5
"""Seconds between two looks at the processor time of a process."""
START = multiprocessing.get_context("spawn")
"""Forked children would begin with the threads and the memory of the parent."""


class BrokenHop(Exception):
    """A way of moving gradients does not work here."""


@dataclass(frozen=True)
class Spent:
    """By one process during one round."""

    cpu: float
    faults: int


@dataclass(frozen=True)
class Round:
    """One round of one hop."""

    seconds: float
    """Until the last worker knew that its vector had arrived."""
    whole: float
    """Until the server was done with the vectors."""
    server: Spent
    workers: Spent

    @property
    def cpu(self) -> float:
        return self.server.cpu + self.workers.cpu


class Side:
    """One process."""

    def __init__(self, role: Literal["server", "workers"], where: str, job: Job, address: str = "") -> None:
        self._role = role
        self._where = where
        self._pipe, theirs = START.Pipe()
        self._process = START.Process(target=_main, args=(role, where, job, address, theirs), daemon=False)
        self._process.start()
        theirs.close()

    def ask(self, what: str, *arguments: object) -> Any:
        """Have a command performed; the answer."""
        self._pipe.send((what, arguments))
        return self.answer(what)

    def answer(self, what: str) -> Any:
        self._wait(what)
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise BrokenHop(f"the {self._role} ended with {self._process.exitcode}") from None
        if kind == "error":
            raise BrokenHop(f"the {self._role} could not {what}: {answer}")
        return answer

    def _wait(self, what: str) -> None:
        """Until there is an answer, for as long as the process moves."""
        whole, still, before = 0.0, 0.0, processor_time(self._process.pid)
        while not self._pipe.poll(LOOK):
            now = processor_time(self._process.pid)
            whole, still, before = whole + LOOK, still + LOOK if now == before else 0.0, now
            if still >= STILL or whole >= LONGEST:
                idle = f", and has done nothing for {still:g} s" if still >= STILL else ""
                raise BrokenHop(f"the {self._role} could not {what} in {whole:g} s{idle}")

    def usage(self) -> Usage:
        return cast(Usage, self.ask("usage"))

    def close(self) -> None:
        with suppress(BrokenHop, OSError):
            self.ask("close")
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


class Pair:
    """A server and its workers. To be connected, then begun, then moved; many can start side by side."""

    def __init__(self, where: str, job: Job) -> None:
        self.job = job
        self._where = where
        self.server = Side("server", where, job)
        self.workers: Side | None = None

    def connect(self) -> None:
        """Wait for the server and start the workers.

        Raises:
            BrokenHop: it does not start.
        """
        address = self.server.answer("start")
        self.workers = Side("workers", self._where, self.job, address)

    def begin(self) -> None:
        """Wait for the workers; from now on memory counts.

        Raises:
            BrokenHop: they do not start.
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
        self.server.ask("ready")
        before = self.server.usage(), self._ours.usage()
        start, end = cast(tuple[float, float], self._ours.ask("round"))
        over = cast(float, self.server.ask("done") or end)
        after = self.server.usage(), self._ours.usage()
        server, workers = (
            Spent(b.cpu - a.cpu, b.faults - a.faults) for a, b in zip(before, after, strict=True)
        )
        return Round(end - start, over - start, server, workers)

    def pace(self, rate: float | None) -> None:
        """Bytes a second that all workers together may send."""
        self._ours.ask("pace", rate)

    def check(self) -> str | None:
        """Why what the last round moved is not what was sent; None when it is."""
        expected = made(self._where).expected(self.job)
        found = self.server.ask("digests") or self._ours.ask("digests")
        wrong = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
        return f"what arrived from worker {wrong[0]} is not what it sent" if wrong else None

    def beyond(self) -> float:
        """Payloads that the server held at most beyond what it held before the first round."""
        return (self.server.usage().peak - self._before.resident) / self.job.size

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
        self.server.close()


def made(where: str) -> Hop:
    """The hop that `module:Class` names; after another colon there may be arguments."""
    module, name, *arguments = where.split(":")
    kind = getattr(importlib.import_module(f"varangian.bench.wire.ways.{module}"), name)
    return cast(Hop, kind(*arguments))


def _main(role: str, where: str, job: Job, address: str, pipe: Connection) -> None:
    """A process: start, perform commands, end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes both
    side: Server | Workers
    try:
        hop = made(where)
        side = hop.serve(job) if role == "server" else hop.connect(address, job)
        pipe.send(("ok", getattr(side, "address", None)))
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        return
    commands: dict[str, Callable[..., Any]] = {
        "ready": lambda: cast(Server, side).ready(),
        "done": getattr(side, "done", lambda: None),
        "pace": getattr(side, "pace", lambda _: None),
        "round": lambda: _timed(cast(Workers, side).round),
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


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """When it began and ended, by a clock that all processes share."""
    start = time.perf_counter()
    work()
    return start, time.perf_counter()
