"""A run over gRPC on this machine: the server in this process, the workers in processes of their own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from math import inf
from pathlib import Path

from varangian.config import RunConfig
from varangian.files import user_path
from varangian.launch.child import ChildSpec
from varangian.launch.event_loop import run_to_completion
from varangian.launch.identities import make_identities
from varangian.launch.output.logs import log_to_file
from varangian.launch.result import Note, RunError, RunResult
from varangian.launch.server_run import ServerRun
from varangian.launch.worker_processes import WorkerProcesses, assign_processes
from varangian.plugins import describe_error
from varangian.protos.network.listen import ListenError
from varangian.server.app import serve
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.observability.record import Observe
from varangian.server.rows.latest_store import NoRoom
from varangian.server.transport.grpc_server import probe
from varangian.worker.transport.tls import Proof

PREFIX = re.compile(r"^.{,60}? (ERROR|WARNING|INFO) [\w.]+: ")
LOOKED_AT, LONGEST = 10_000, 500
"""Characters: how far back in a log its last line is looked for, and how much of it is repeated."""


def run_in_processes(config: RunConfig, *, observe: Observe, note: Note) -> RunResult:
    """Carry a run out with real processes.

    Raises:
        RunError: it cannot be started.
    """
    with WorkerProcesses() as worker_group:
        return run_to_completion(lambda: _run(config, worker_group, observe, note))


async def _run(config: RunConfig, worker_group: WorkerProcesses, observe: Observe, note: Note) -> RunResult:
    check_port(config)
    session = ServerRun.open(config, observe, note)
    for sentence in session.sentences:
        note(sentence)
    address = asyncio.get_running_loop().create_future()
    log = log_to_file(session.folder.path / "server.log", warn=session.folder.warn)
    with closing(session), log, make_identities(config) as known, session.stop.on_signals(note):
        watching = asyncio.create_task(_watch_workers(session, worker_group, known.proofs, address, note))
        try:
            ended = await serve_run(session, known.sessions, address.set_result, known.security)
            return session.result(ended)
        finally:
            watching.cancel()


async def serve_run(
    session: ServerRun,
    sessions: Sessions,
    ready: Callable[[str], None],
    security: Security | None,
    *,
    returns: bool = False,
) -> str:
    """Serve the run until it ends, over TLS when there is security; returns why it ended.

    If the server `returns` after a stop, its workers wait for it.

    Raises:
        RunError: the address is not to be had, or the disk is full.
    """
    heartbeat = session.config.server.heartbeat
    try:
        return await serve(
            session.coordinator(),
            sessions,
            session.worker_compute.layout,
            run_id=session.folder.path.name,
            host=session.config.server.host,
            port=session.config.server.port,
            data_port=session.config.server.data_port,
            ready=ready,
            stop=session.stop.event,
            security=security,
            dtype=session.config.wire.dtype,
            heartbeat=None if heartbeat is None else user_path(heartbeat),
            returns=returns,
            common=session.worker_compute.common,
            classes=session.worker_compute.dataset.classes,
            end=session.stop.because,
        )
    except ListenError as error:
        session.folder.discard()
        raise RunError(str(error)) from error
    except NoRoom as error:
        raise RunError(str(error)) from error


def check_port(config: RunConfig) -> None:
    """See that the server can listen where it should, before data is loaded and a folder is made.

    Raises:
        RunError: it cannot.
    """
    try:
        probe(config.server.host, config.server.port)
    except ListenError as error:
        raise RunError(str(error)) from error


async def _watch_workers(
    session: ServerRun,
    worker_group: WorkerProcesses,
    proofs: Mapping[str, Proof],
    address: asyncio.Future[str],
    note: Note,
) -> None:
    """Start the workers, and end a run that can no longer have its quorum."""
    policy, log = session.machine.policy, session.folder.path / "workers.log"
    gone = set[str]()

    def lost(workers: tuple[str, ...], how: str, left: int) -> None:
        if session.over:
            return
        note(f"the process of {', '.join(workers)} {how}; see {log}")
        if said := last_words(log, workers):
            note(said)
        gone.update(workers)
        if left < policy.quorum:
            session.stop.because(f"only {left} workers are left, and the quorum is {policy.quorum}")
        elif policy.shortfall == "wait" and (
            reason := session.config.participation.lost_quorum(policy.workers, gone, policy.quorum)
        ):
            session.stop.because(reason)

    posts = _child_specs(session, proofs, await address)
    try:
        await asyncio.to_thread(worker_group.start, posts)
    except Exception as error:
        session.stop.because(f"the processes of the workers cannot be started: {describe_error(error)}")
        return
    await worker_group.watch(lost)


def last_words(log: Path, workers: Sequence[str]) -> str:
    """The last line of a log that names one of these workers; empty if there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace")[-LOOKED_AT:].split("\n")
    except OSError:
        return ""
    said = [line for line in lines if any(worker in line for worker in workers)]
    # Without time, process and logger, which stand before the sentence.
    return PREFIX.sub("", said[-1])[:LONGEST] if said else ""


def _child_specs(session: ServerRun, proofs: Mapping[str, Proof], address: str) -> list[ChildSpec]:
    # Workers take the number of classes from here, as those elsewhere take it from the server.
    told = replace(session.worker_compute.task, classes=session.worker_compute.dataset.classes)
    return [
        ChildSpec(
            server=address,
            proofs={name: proofs[name] for name in workers},
            task=told,
            threads=session.config.worker.threads,
            log=session.folder.path / "workers.log",
            patience=session.config.worker.patience or inf,
        )
        for workers in assign_processes(session.config)
    ]
