"""A run on this machine: settings, data and model, and the memory, processors, disk and ports it needs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from varangian.cli.commands.doctor.disk import check_output, check_rows, check_state, check_temporary
from varangian.cli.commands.doctor.finding import Finding, fail, note, passed, within
from varangian.config import RunConfig, advice
from varangian.config.build import task
from varangian.files import user_path
from varangian.launch.children.worker_processes import assign_processes
from varangian.launch.monitoring.live import check_access
from varangian.launch.result import RunError
from varangian.launch.server_run import (
    check_descriptors,
    describe_misfits,
    mapped_plan,
    memory_budget,
    rows_folder,
    snapshot_bytes,
    try_aggregator,
)
from varangian.protos.network.address import EVERYWHERE, is_loopback, join_host_port
from varangian.protos.network.listen import ListenError, PortInUse, bind_sockets
from varangian.registry import ConfigError
from varangian.resources import available_memory, cores, free_processes, readable, resident_memory
from varangian.worker.training.compute import WorkerCompute

Part = Literal["all", "server", "worker"]
"""What of a run is to be on this machine."""
BESIDE_BEST = 2
"""Checkpoints that are kept beside the newest: the best, and one from before alarms."""
MODELS = 2
"""Files of the model at the end of a run: the parameters, and their average."""
PER_PROCESS = 40
"""Threads of a process with torch and gRPC, or more."""
LOOKUP = 10.0
"""Seconds for a name server."""
MANY = 2.0
"""Threads to a processor from which a note says so."""


@dataclass(frozen=True)
class Place:
    """A run, and what of it is to be here."""

    config: RunConfig
    part: Part


def check_run(place: Place) -> Iterator[Finding]:
    """The checks in order; what needs a model is left out where there is none."""
    config = place.config
    yield _settings(config)
    for sentence in advice(config):
        yield note("settings", sentence)
    crew = None
    try:
        crew = WorkerCompute(task(config))
        notes = describe_misfits(config, crew.rehearse(crew.initial()))
        try_aggregator(config, crew.layout.trained.sizes)
    except ConfigError as error:
        for problem in error.problems:
            yield fail("data", str(problem), "`varangian check` tries it again.")
    except (ValueError, OSError, RunError) as error:
        yield fail("data", str(error))
    else:
        samples, d = crew.dataset.size, crew.layout.numel
        yield passed(
            "data", f"{samples} training samples, {d} parameters, a gradient on {config.worker.device}"
        )
        for sentence in notes:
            yield note("data", sentence)
        yield from _memory(place, crew)
    yield from _processes(place)
    yield from _disk(place, None if crew is None else crew.layout.numel)
    if place.part != "worker" and config.backend != "simulate":
        yield from check_ports(config)
        yield from _watching(place)


def _watching(place: Place) -> Iterator[Finding]:
    """Whether only those can look at the metrics port who may; that it is free has been said."""
    try:
        # A server with a bundle of its own shows it there; that of a whole run on one machine has none.
        check_access(place.config, certificates=place.part == "server")
    except ConfigError as error:
        for problem in error.problems:
            yield fail("ports", str(problem))


def _settings(config: RunConfig) -> Finding:
    rows = config.participation.sentence(config.workers, config.f, config.quorum)
    return passed(
        "settings", f"{config.workers} workers, f = {config.f}: the rule's condition holds with {rows}"
    )


def _memory(place: Place, crew: WorkerCompute) -> Iterator[Finding]:
    """Memory: of the server by its account, of worker processes by this one, which is like them."""
    config, room, base = place.config, available_memory(), resident_memory()
    if room is None:
        yield passed("memory", "the system does not say how much is free")
        return
    # A worker's vector, its momentum, the parameters, their gradients and what a step needs.
    each = base + 8 * 4 * crew.layout.numel
    if place.part == "worker":
        need, which = each, "a worker process"
        if need - base > room:
            yield fail(
                "memory",
                f"{which} takes about {readable(need)}, and {readable(room + base)} are available",
                "Use a smaller model, or a machine with more.",
            )
        else:
            yield passed(
                "memory", f"{which} takes about {readable(need)}; {readable(room + base)} are available"
            )
        return
    account = memory_budget(config, crew).within(room)
    if refusal := account.refusal(room):
        yield fail("memory", refusal)
        return
    groups = len(assign_processes(config)) if _starts_workers(place) else 0
    every = account.total + groups * each
    if groups and every > room + base:
        yield note(
            "memory",
            f"the server takes at most {readable(account.total)} and {groups} worker processes about "
            f"{readable(each)} each; {readable(room + base)} are available",
            "Raise worker.per_process, which makes fewer processes, or use backend=simulate.",
        )
        return
    beside = f", {groups} worker processes about {readable(each)} each" if groups else ""
    yield passed(
        "memory",
        f"the server takes at most {readable(account.total)}{beside}; "
        f"{readable(room + base)} are available",
    )


def _processes(place: Place) -> Iterator[Finding]:
    """Open files, threads and processes."""
    config = place.config
    if place.part != "worker" and (refusal := check_descriptors(config)):
        yield fail("files", refusal)
    if not _starts_workers(place):
        return
    groups, usable = len(assign_processes(config)), cores()
    threads = groups * config.worker.threads
    found = f"{groups} worker processes, worker.threads={config.worker.threads},"
    if threads > MANY * usable + 1:
        yield note(
            "threads",
            f"{found} share {usable:g} processors: they take turns, with the same numbers",
            "worker.per_process puts more workers into a process; worker.threads is for each of them.",
        )
    else:
        yield passed("threads", f"{found} on {usable:g} processors")
    free, needed = free_processes(), PER_PROCESS * (groups + 1)
    if free is not None and free < needed:
        yield fail(
            "processes",
            f"the run may need {needed} processes and threads, and this control group allows {free} more",
            "Raise the limit (pids_limit in Compose, TasksMax in systemd), or worker.per_process.",
        )


def _disk(place: Place, d: int | None) -> Iterator[Finding]:
    config = place.config
    if place.part == "worker":
        yield check_temporary(note)
        yield from check_state(config.worker.state)
        return
    snapshot = 0 if d is None else snapshot_bytes(config, d)
    kept = 0 if config.server.checkpoint is None else config.server.checkpoint.keep + BESIDE_BEST
    needed = kept * snapshot + MODELS * 4 * (d or 0)
    yield check_output(user_path(config.output).absolute(), needed, snapshot)
    if (folder := rows_folder(config)) is not None:
        plan = None if d is None else mapped_plan(config, d)
        yield check_rows(folder, None if plan is None else plan.bytes)
    yield check_temporary()


def ports(config: RunConfig) -> Iterator[tuple[str, str, int]]:
    """Setting, host and number of each port that the server opens."""
    server = config.server
    for name in type(server).model_fields:
        port = getattr(server, name)
        if (name == "port" or name.endswith("_port")) and port is not None:
            host = getattr(server, f"{name.removesuffix('port')}host", server.host)
            yield f"server.{name}", host, port


def check_ports(config: RunConfig) -> Iterator[Finding]:
    """Whether the server can listen on each of its ports. They are given back at once."""
    for setting, host, port in ports(config):
        where = f"{join_host_port(host, port) if port else f'any free port of {host}'}"
        try:
            for listener in bind_sockets(host, port, setting):
                listener.close()
        except PortInUse as error:
            yield fail("ports", str(error), f"`ss -ltnp 'sport = :{port}'` names it.")
        except (ListenError, OverflowError) as error:
            low = " Ports below 1024 are for root alone." if 0 < port < 1024 else ""
            yield fail("ports", f"{error}{low}")
        else:
            yield passed("ports", f"{setting}: the server can listen on {where}")
    yield from check_listen_host(config.server.host)


def check_listen_host(host: str) -> Iterator[Finding]:
    """Whether a name to listen on means this machine alone, as in /etc/hosts of Debian."""
    if host == EVERYWHERE or host == "localhost":
        return
    try:
        addresses = within(LOOKUP, lambda: addresses_of(host))
    except OSError:
        return  # the ports have said so
    if not is_loopback(host) and addresses and all(map(is_loopback, addresses)):
        yield note(
            "ports",
            f"server.host={host} is {', '.join(addresses)}, which only programs on this machine can reach",
            "Set server.host to an address of the network, or to '*' for all of them.",
        )


def addresses_of(host: str, port: int = 0) -> list[str]:
    """The addresses of a name, in the order in which the system prefers them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _starts_workers(place: Place) -> bool:
    return place.part == "all" and place.config.backend == "processes"
