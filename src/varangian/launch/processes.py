"""A run over gRPC on this machine: the server in this process, the workers in processes of their own."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from math import inf
from pathlib import Path

from varangian.config import RunConfig
from varangian.config.build import task
from varangian.files import user_path
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.checkpoints.worker_states import lost_states, states_folder, tidy_states
from varangian.launch.children.child import ChildSpec
from varangian.launch.children.worker_processes import WorkerProcesses, assign_processes
from varangian.launch.event_loop import run_to_completion
from varangian.launch.identities import make_identities
from varangian.launch.membership.desk import Desk
from varangian.launch.monitoring.live import check_metrics, open_monitoring
from varangian.launch.output.logs import log_to_file
from varangian.launch.output.run_result import RunResult
from varangian.launch.result import Note, RunError
from varangian.launch.server_run import ServerRun
from varangian.pki.x509 import MissingExtra, require
from varangian.plugins import describe_error
from varangian.protos.network.listen import ListenError
from varangian.protos.text import escape
from varangian.server.app import serve
from varangian.server.identity.enrolment import Enrolment
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.observability.record import Observe
from varangian.server.rows.latest_store import NoRoom
from varangian.server.transport.enrolment import EnrolmentPort
from varangian.server.transport.grpc_server import probe
from varangian.structured_logs import enter, log_format
from varangian.telemetry import open_telemetry
from varangian.worker.transport.tls import Proof

REASON = 200
"""Characters of the reason of a program that workers hear."""
PREFIX = re.compile(r"^.{,60}? (ERROR|WARNING|INFO) [\w.]+: ")
LOOKED_AT, LONGEST = 10_000, 500
"""Characters: how far back in a log its last line is looked for, and how much of it is repeated."""


def run_in_processes(
    config: RunConfig,
    *,
    observe: Observe,
    note: Note,
    folder: Path | None = None,
    resume: Resumed | None = None,
) -> RunResult:
    """Carry a run out with real processes, or go on with one.

    Raises:
        RunError: it cannot be started.
    """
    with WorkerProcesses() as worker_group:
        result = run_to_completion(lambda: _run(config, worker_group, observe, note, folder, resume))
    if result.folder is not None:
        tidy_states(config, result.folder, over=result.outcome == "finished")
    return result


async def _run(
    config: RunConfig,
    worker_group: WorkerProcesses,
    observe: Observe,
    note: Note,
    folder: Path | None,
    resume: Resumed | None,
) -> RunResult:
    check_port(config)
    check_traces("worker.traces", config.worker.traces)
    check_metrics(config, certificates=False)
    server_run = ServerRun.open(config, observe, note, folder, resume)
    enter(server_run.folder.path.name).round = server_run.machine.state.round
    for sentence in server_run.sentences:
        note(sentence)
    if resume is not None and resume.state is not None:
        members = server_run.machine.policy.workers
        lost = lost_states(config, server_run.folder.path, resume.round, members, resume.parent)
        if lost is not None:
            note(lost)
    address = asyncio.get_running_loop().create_future()
    log = log_to_file(server_run.folder.path / "server.log", warn=server_run.folder.warn)
    with server_run.stop.on_signals(note), closing(server_run), log, make_identities(config) as known:
        watching = asyncio.create_task(
            _watch_workers(server_run, worker_group, known.proofs, address, note)
        )
        try:
            ended = await serve_run(server_run, known.sessions, address.set_result, known.security)
            return server_run.result(ended)
        finally:
            watching.cancel()


async def serve_run(
    server_run: ServerRun,
    sessions: Sessions,
    ready: Callable[[str], None],
    security: Security | None,
    *,
    returns: bool = False,
    enrolling: Callable[[str], None] | None = None,
) -> str:
    """Serve the run until it ends, over TLS when there is security; returns why it ended.

    Args:
        server_run: the run.
        sessions: of its workers.
        ready: called with `host:port`, when workers can connect.
        security: for TLS.
        returns: whether its workers wait for the server after a stop.
        enrolling: called with `host:port` when new workers can ask for certificates; None lets nobody ask.

    Raises:
        RunError: the address is not to be had, the disk is full, or enrolment lacks a package.
    """
    heartbeat = server_run.config.server.heartbeat
    if security is not None:
        server_run.sign_with(security)
    enrolment = _enrolment(server_run, sessions, security, enrolling)

    def begin(address: str) -> None:
        server_run.trackers.begin()
        ready(address)

    try:
        coordinator = server_run.coordinator()
        if server_run.config.server.metrics_port is not None:
            server_run.measure(coordinator, sessions, security)
        if server_run.config.server.traces:
            server_run.trace()
        return await serve(
            coordinator,
            sessions,
            server_run.model_side.layout,
            run_id=server_run.folder.path.name,
            host=server_run.config.server.host,
            port=server_run.config.server.port,
            data_port=server_run.config.server.data_port,
            ready=begin,
            stop=server_run.stop.event,
            security=security,
            dtype=server_run.encoding.dtype,
            exact=server_run.encoding.exact,
            heartbeat=None if heartbeat is None else user_path(heartbeat),
            returns=returns,
            for_good=lambda: escape(server_run.stop.reason, REASON) if server_run.stop.for_good else "",
            common=server_run.model_side.common,
            classes=server_run.model_side.classes,
            terms=server_run.terms,
            grace=server_run.grace,
            end=server_run.stop.because,
            refused=server_run.refused,
            traffic=server_run.traffic,
            desk=Desk(server_run, coordinator, sessions),
            enrolment=enrolment,
            # Others know the authority of certificates only where they have outlasted the run before.
            monitoring=open_monitoring(server_run, coordinator, sessions, security if returns else None),
        )
    except ListenError as error:
        server_run.folder.discard()
        raise RunError(str(error)) from error
    except NoRoom as error:
        raise RunError(str(error)) from error
    finally:
        if server_run.tracing is not None:
            await asyncio.to_thread(server_run.tracing.close)


def _enrolment(
    server_run: ServerRun,
    sessions: Sessions,
    security: Security | None,
    ready: Callable[[str], None] | None,
) -> EnrolmentPort | None:
    """The port where new workers ask for their certificates, if there is to be one."""
    port = server_run.config.server.enrol_port
    if port is None or security is None or ready is None:
        return None
    try:
        require()
    except MissingExtra as error:
        raise RunError(f"server.enrol_port: {error}") from error
    enrolment = Enrolment(server_run.folder.path, security, lambda: sessions.names)
    return EnrolmentPort(enrolment, security, port, ready)


def check_traces(setting: str, wanted: bool) -> None:
    """See that there can be traces where a setting asks for some.

    Raises:
        RunError: there cannot.
    """
    if wanted:
        try:
            open_telemetry.require()
        except open_telemetry.MissingTracing as error:
            raise RunError(f"{setting}: {error}") from error


def check_port(config: RunConfig) -> None:
    """See that the server can listen where it should, before data is loaded and a folder is made.

    Raises:
        RunError: it cannot, or has no packages for the traces that it should make.
    """
    check_traces("server.traces", config.server.traces)
    try:
        probe(config.server.host, config.server.port)
    except ListenError as error:
        raise RunError(str(error)) from error


async def _watch_workers(
    server_run: ServerRun,
    worker_group: WorkerProcesses,
    proofs: Mapping[str, Proof],
    address: asyncio.Future[str],
    note: Note,
) -> None:
    """Start the workers, and end a run that can no longer have its quorum."""
    policy, log = server_run.machine.policy, server_run.folder.path / "workers.log"
    gone = set[str]()

    def lost(workers: tuple[str, ...], how: str, left: int) -> None:
        if server_run.over:
            return
        note(f"the process of {', '.join(workers)} {how}; see {log}")
        if said := last_words(log, workers):
            note(said)
        gone.update(workers)
        if left < policy.quorum:
            server_run.stop.because(f"only {left} workers are left, and the quorum is {policy.quorum}")
        elif policy.shortfall == "wait" and (
            reason := server_run.config.participation.lost_quorum(policy.workers, gone, policy.quorum)
        ):
            server_run.stop.because(reason)

    posts = _child_specs(server_run, proofs, await address)
    try:
        await asyncio.to_thread(worker_group.start, posts)
    except Exception as error:
        server_run.stop.because(f"the processes of the workers cannot be started: {describe_error(error)}")
        return
    await worker_group.watch(lost)


def last_words(log: Path, workers: Sequence[str]) -> str:
    """The last line of a log that names one of these workers; empty if there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace")[-LOOKED_AT:].split("\n")
    except OSError:
        return ""
    said = [line for line in lines if any(worker in line for worker in workers)]
    if said and said[-1].startswith("{"):
        return _message(said[-1])[:LONGEST]
    # Without time, process and logger, which stand before the sentence.
    return PREFIX.sub("", said[-1])[:LONGEST] if said else ""


def _message(line: str) -> str:
    """The message of a line of JSON."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line


def _child_specs(server_run: ServerRun, proofs: Mapping[str, Proof], address: str) -> list[ChildSpec]:
    # Workers take the number of classes from here, as those elsewhere take it from the server.
    told = replace(task(server_run.start), classes=server_run.model_side.classes)
    states = states_folder(server_run.config, server_run.folder.path)
    return [
        ChildSpec(
            server=address,
            proofs={name: proofs[name] for name in workers},
            task=told,
            threads=server_run.config.worker.threads,
            log=server_run.folder.path / "workers.log",
            patience=server_run.config.worker.patience or inf,
            state=states,
            log_format=log_format(),
            traces=server_run.config.worker.traces,
        )
        for workers in assign_processes(server_run.config)
    ]
