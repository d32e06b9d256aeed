"""A process that hosts several workers: a connection and a loop for each, one model for all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varangian.plugins import InputError
from varangian.protos.network import descriptors
from varangian.protos.network.grpc_log import install_log_filter
from varangian.protos.network.malloc import keep_large_blocks
from varangian.protos.network.thread_results import result_of
from varangian.structured_logs import enter, event
from varangian.telemetry.heartbeat import touch_heartbeat
from varangian.worker.loop import NO_SPANS, work
from varangian.worker.misbehaving import MisbehavingClient
from varangian.worker.signals import SignalHandling
from varangian.worker.spans import Spans, TracedSpans
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.history import WorkerHistory
from varangian.worker.training.task import Task
from varangian.worker.transport.client import Client, ClientError
from varangian.worker.transport.results import Declined
from varangian.worker.transport.retry import Backoff
from varangian.worker.transport.tls import Proof

log = logging.getLogger(__name__)

FINISHED = 0
FAILED = 1


def host(
    server: str,
    names: Sequence[str],
    proofs: Mapping[str, Proof],
    task: Task,
    threads: int = 1,
    *,
    one_of: bool = False,
    patience: float = inf,
    state: Callable[[str], Path] | None = None,
    tidy: bool = False,
    heartbeat: Path | None = None,
    traces: bool = False,
) -> int:
    """Host these workers until the run is finished; returns the exit code of the process.

    A worker that the server refuses ends alone, with one line in the log. After a signal this
    returns as soon as the computation at hand is done; if that takes seconds, or at a second signal, the
    process ends in the middle of it. A second computation never runs beside it.

    Args:
        server: `host:port`.
        names: of workers of the task.
        proofs: worker names to the token or bundle of each.
        task: of the run's workers.
        threads: of torch; the same number gives the same bits.
        one_of: host only one of them, the first whose name is free.
        patience: seconds to wait for a server that cannot be reached; by default as long as it takes.
        state: from the name of a run to the folder in which the workers keep what they remember, so that
            they go on after a crash; None keeps nothing.
        tidy: delete what belongs to no checkpoint when the run is over, and say where the rest stays.
        heartbeat: a file that is touched every second while the process answers.
        traces: make spans of computations and pushes, for OpenTelemetry.
    """
    keep_large_blocks()
    install_log_filter()
    torch.set_num_threads(threads)
    hosted = 1 if one_of else len(names)
    descriptors.raise_limit(descriptors.needed_descriptors(hosted, data_channel=True))
    # Where payloads cannot have connections of their own, they travel with the calls.
    if refusal := descriptors.why_too_few("the process of the workers", hosted, data_channel=False):
        log.error("%s", refusal, extra=event("worker_failed"))
        return FAILED
    try:
        worker_compute = WorkerCompute(task)
    except ValueError as error:
        log.error("%s", error, extra=event("worker_failed"))
        return FAILED
    spans = TracedSpans() if traces else NO_SPANS
    members = [tuple(names)] if one_of else [(name,) for name in names]
    worker_compute.hosted = tuple(names)
    history = WorkerHistory(worker_compute, state)
    backoff = Backoff(patience=patience)
    with (
        SignalHandling() as ending,
        ThreadPoolExecutor(1, "varangian-workers", torch.set_num_threads, (threads,)) as executor,
    ):
        descriptors.check_free()
        run = _until_stopped(
            server, members, proofs, worker_compute, history, executor, ending, backoff, spans
        )
        code = FAILED
        try:
            code = asyncio.run(_with_heartbeat(run, heartbeat))
            return code
        finally:
            history.close(over=tidy and code == FINISHED)
            if tidy and code in (FINISHED, FAILED):  # also of one that was expelled
                history.say_what_stays()
            spans.close()


async def _with_heartbeat(run: Coroutine[Any, Any, int], heartbeat: Path | None) -> int:
    async with touch_heartbeat(heartbeat):
        return await run


async def _until_stopped(
    server: str,
    members: Sequence[tuple[str, ...]],
    proofs: Mapping[str, Proof],
    worker_compute: WorkerCompute,
    history: WorkerHistory,
    executor: Executor,
    ending: SignalHandling,
    backoff: Backoff,
    spans: Spans,
) -> int:
    tasks: list[asyncio.Task[int]] = []
    main = asyncio.current_task()
    assert main is not None
    with ending.of(lambda: (main, *tasks)):
        try:
            async with asyncio.TaskGroup() as group:
                for names in members:
                    task = group.create_task(
                        _run_member(
                            names, server, proofs, worker_compute, history, executor, backoff, spans
                        )
                    )
                    tasks.append(task)
                    task.add_done_callback(partial(_say_who_is_left, names, members, tasks))
        except asyncio.CancelledError:
            if ending.code is None:
                raise
    if ending.code is not None:
        return ending.code
    lost = [member for member, task in zip(members, tasks, strict=True) if task.result() != FINISHED]
    if lost and len(members) > 1:
        log.error(
            "This process ends with an error: %s ended before the run did.",
            format_members(lost),
            extra=event("workers_lost"),
        )
    return max((task.result() for task in tasks), default=FINISHED)


def _say_who_is_left(
    names: Sequence[str],
    members: Sequence[Sequence[str]],
    tasks: Sequence[asyncio.Task[int]],
    ended: asyncio.Task[int],
) -> None:
    """Log that a worker has ended for good while others of this process go on."""
    if ended.cancelled() or ended.exception() is not None or ended.result() == FINISHED:
        return
    left = [member for member, task in zip(members, tasks, strict=False) if not task.done()]
    if left:
        log.error(
            "%s has ended for good. This process goes on with %s.",
            format_members([names]),
            format_members(left),
            extra=event("worker_gone"),
        )


def format_members(members: Sequence[Sequence[str]]) -> str:
    """The members as text; one that claims a name is shown with all its candidates."""
    return ", ".join("/".join(names) for names in members)


async def _run_member(
    names: Sequence[str],
    server: str,
    proofs: Mapping[str, Proof],
    worker_compute: WorkerCompute,
    history: WorkerHistory,
    executor: Executor,
    backoff: Backoff,
    spans: Spans,
) -> int:
    """Work under the first of these names that is free, until the run is finished or refuses it."""
    task = worker_compute.task
    enter(worker=names[0] if len(names) == 1 else None)

    async def compute(client: Client, round: int, parameters: Tensor) -> Tensor | None:
        name, run, epoch = client.name, client.run, client.terms.epoch
        inside = copy_context().run  # what is logged there is about this worker, too
        job = executor.submit(inside, history.compute, name, run, epoch, round, parameters)
        vector = await result_of(job)
        if vector is not None:
            await asyncio.sleep(_seconds(task, name, round))
        return vector

    async def rewind(client: Client, round: int) -> tuple[int, Tensor] | None:
        unconfirmed = await result_of(
            executor.submit(history.rewind, client.name, client.run, client.terms, round)
        )
        if isinstance(client, MisbehavingClient):
            client.memory = await result_of(executor.submit(history.line_memory, client.name, round))
            client.keep = partial(keep_line, client)
        return unconfirmed

    def keep_line(client: Client, round: int, memory: dict[str, Any]) -> None:
        run, epoch = client.run, client.terms.epoch
        executor.submit(history.keep_line, client.name, run, epoch, round, memory)

    def confirm(client: Client, round: int) -> None:
        # The thread has one job at a time, so this is done before the worker computes again.
        executor.submit(history.confirm, client.name, client.run, client.terms.epoch, round)

    def next_round(name: str, round: int) -> int:
        return round if task.listens(name) else task.timetable.turn(name, round)

    try:
        for name in names:
            async with _client(server, name, proofs[name], worker_compute, backoff) as client:
                client.traced = spans is not NO_SPANS
                if len(names) == 1 or await client.claim():
                    if len(names) > 1:
                        worker_compute.hosted = (name,)
                    reason = await work(
                        client,
                        partial(compute, client),
                        next_round=partial(next_round, name),
                        on_counted=partial(confirm, client),
                        rewind=partial(rewind, client),
                        spans=spans,
                    )
                    log.info("%s: %s", name, reason, extra=event("worker_done", worker=name))
                    return FINISHED
        log.error(
            "Each of %s belongs to another process already; there is no place left.",
            ", ".join(names),
            extra=event("no_place"),
        )
    except ClientError as error:
        log.error("%s", error, extra=event("worker_failed"))
    except asyncio.CancelledError:
        task_of_this = asyncio.current_task()
        if task_of_this is None or task_of_this.cancelling():
            raise
        # A task group would take the cancellation for the end of this worker, and log nothing.
        log.exception(
            "%s was cancelled, but not by this process", ", ".join(names), extra=event("worker_failed")
        )
    return FAILED


def _client(
    server: str, name: str, proof: Proof, worker_compute: WorkerCompute, backoff: Backoff
) -> Client:
    """The connection of a worker; that of an attacker sends as its attack on the protocol says."""
    task, layout, common = worker_compute.task, worker_compute.layout, worker_compute.common.text
    if task.protocol is None or name not in task.byzantine:
        return Client(server, name, proof, layout, common=common, backoff=backoff)
    attack, seed = task.protocol, task.seed
    return MisbehavingClient(
        server, name, proof, layout, attack=attack, seed=seed, common=common, backoff=backoff
    )


def _seconds(task: Task, name: str, round: int) -> float:
    """The delay of a worker.

    Raises:
        Declined: an attack of the user, which chooses it, fails.
    """
    try:
        return task.delay(name, round)
    except InputError as error:
        raise Declined(str(error)) from error
