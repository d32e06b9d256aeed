"""A run over gRPC on this machine: the server in this process, the workers in processes of their own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import closing

from varangian.backends import Note
from varangian.backends.child import Post
from varangian.backends.crowd import Crowd, dealt
from varangian.backends.log import logged_to
from varangian.backends.result import RunError, RunResult
from varangian.backends.session import Session
from varangian.config import RunConfig
from varangian.server.listen import ListenError
from varangian.server.record import Observe
from varangian.server.roster import Roster
from varangian.server.service import serve


def processes(config: RunConfig, *, observe: Observe, note: Note) -> RunResult:
    """Carry a run out with real processes.

    Raises:
        RunError: it cannot be started.
    """
    with Crowd() as crowd:
        return asyncio.run(_run(config, crowd, observe, note))


async def _run(config: RunConfig, crowd: Crowd, observe: Observe, note: Note) -> RunResult:
    session = Session.open(config, observe)
    roster = Roster(session.machine.policy.workers, secrets.token_bytes(32))
    address = asyncio.get_running_loop().create_future()
    log = logged_to(session.folder.path / "server.log")
    with closing(session.folder), log, session.stop.on_signals(note):
        watching = asyncio.create_task(_watched(session, crowd, roster, address, note))
        try:
            return session.result(await served(session, roster, address.set_result))
        finally:
            watching.cancel()


async def served(session: Session, roster: Roster, ready: Callable[[str], None]) -> str:
    """Serve the run until it ends; returns why it ended.

    Raises:
        RunError: the address is not to be had.
    """
    try:
        return await serve(
            session.driver(),
            roster,
            session.crew.layout,
            run_id=session.folder.path.name,
            host=session.config.server.host,
            port=session.config.server.port,
            ready=ready,
            stop=session.stop.event,
            dtype=session.config.wire.dtype,
        )
    except ListenError as error:
        raise RunError(str(error)) from error


async def _watched(
    session: Session, crowd: Crowd, roster: Roster, address: asyncio.Future[str], note: Note
) -> None:
    """Start the workers, and end a run that can no longer have its quorum."""
    quorum, log = session.machine.policy.quorum, session.folder.path / "workers.log"

    def lost(workers: tuple[str, ...], how: str, left: int) -> None:
        if session.over:
            return
        note(f"the process of {', '.join(workers)} {how}; see {log}")
        if left < quorum:
            session.stop.because(f"only {left} workers are left, and the quorum is {quorum}")

    posts = _posts(session, roster, await address)
    await asyncio.to_thread(crowd.start, posts)
    await crowd.watch(lost)


def _posts(session: Session, roster: Roster, address: str) -> list[Post]:
    return [
        Post(
            server=address,
            tokens={name: roster.token(name) for name in workers},
            task=session.crew.task,
            threads=session.config.worker.threads,
            log=session.folder.path / "workers.log",
        )
        for workers in dealt(session.config)
    ]
