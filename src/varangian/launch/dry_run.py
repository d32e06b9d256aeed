"""A dry run: tries everything that comes before the first round, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from varangian.config import RunConfig
from varangian.config.build import task
from varangian.config.checks.weights import weight_sentence
from varangian.files import user_path
from varangian.launch.checkpoints.folder import check_best
from varangian.launch.children.worker_processes import assign_processes
from varangian.launch.identities import make_identities, uses_tls
from varangian.launch.result import RunError
from varangian.launch.server_run import (
    check_descriptors,
    describe_misfits,
    mapped_plan,
    memory_budget,
    try_aggregator,
    with_sample_weights,
)
from varangian.protos.network.listen import ListenError, bind_sockets
from varangian.registry import ConfigError, Problem
from varangian.resources import available_memory
from varangian.server.rows.latest_store import NoRoom
from varangian.trackers import TRACKERS, missing_packages
from varangian.worker.training.compute import WorkerCompute


@dataclass(frozen=True)
class Rehearsal:
    """The findings of a dry run."""

    worked: tuple[str, ...]
    """Checks that passed, a sentence each."""
    notes: tuple[str, ...]
    """Warnings: it works, but the user should know."""
    problems: tuple[Problem, ...]
    """Problems that would stop the run."""
    untried: tuple[str, ...]
    """Needs of a run that were not tried."""


def rehearse(config: RunConfig) -> Rehearsal:
    """Load the data, build the model, compute a gradient, evaluate, and look at memory, disk and ports."""
    worked, notes, problems = list[str](), list[str](), list[Problem]()

    @contextmanager
    def tried(path: str) -> Generator[None]:
        try:
            yield
        except ConfigError as error:
            problems.extend(error.problems)
        except (ValueError, OSError, RunError) as error:
            problems.append(Problem(path, _sentence(error)))

    crews = list[WorkerCompute]()
    with tried("data or model"):
        worker_compute = WorkerCompute(task(config))
        config = with_sample_weights(config, worker_compute)
        crews.append(worker_compute)
        notes += describe_misfits(config, worker_compute.rehearse(worker_compute.initial()))
        check_best(config, worker_compute.score_names)
        worked.append(_try_computation(config, worker_compute))
    for worker_compute in crews:  # none, if it could not be made
        with tried("memory"):
            account = memory_budget(config, worker_compute)
            if refusal := account.refusal(available_memory()) or check_descriptors(config):
                raise RunError(refusal)
            worked.append(account.sentence)
        with tried("aggregator"):
            try_aggregator(config, worker_compute.layout.trained.sizes)
            if sentence := weight_sentence(config):
                worked.append(f"weights: {sentence.removeprefix('weights ')}")
        with tried("participation"):
            if plan := config.participation.latest_plan(config.workers, worker_compute.layout.numel):
                plan.check_room()
                worked.append(plan.sentence())
        with tried("server.rows_folder"):
            if mapped := mapped_plan(config, worker_compute.layout.numel):
                mapped.check_room()
                worked.append(mapped.sentence())
    for path, trial in _TRIALS:
        with tried(path):
            worked += trial(config)
    return Rehearsal(tuple(worked), tuple(notes), tuple(problems), tuple(_list_untried(config)))


def _try_computation(config: RunConfig, worker_compute: WorkerCompute) -> str:
    """A sentence about the data and the model, after a gradient and an evaluation."""
    d, tensors, device = (
        worker_compute.layout.numel,
        len(worker_compute.layout.entries),
        config.worker.device,
    )
    model = f"{worker_compute.dataset.size} training samples, {d} parameters in {tensors} tensors"
    return f"data and model: {model}, a gradient and an evaluation computed on {device}"


def _writable(config: RunConfig) -> Iterator[str]:
    """A file in the folder for runs, or in the one where that would be made; it is removed again."""
    wanted = user_path(config.output).absolute()
    there = next(path for path in (wanted, *wanted.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1 << 12))
    except OSError as error:
        reason = f"run folders cannot be made in {wanted}: {error.strerror or error}"
        raise RunError(f"{reason}. Choose another place with output=DIR") from error
    yield f"output: run folders can be made in {wanted}"


def _listening(config: RunConfig) -> Iterator[str]:
    """The ports of the server, which are given back at once."""
    if config.backend == "simulate":
        return
    server = config.server
    for setting in ("server.port", "server.data_port", "server.enrol_port", "server.metrics_port"):
        port = getattr(server, setting.removeprefix("server."))
        if port is None:
            continue
        host = server.metrics_host if setting == "server.metrics_port" else server.host
        for listener in bind_sockets(host, port, setting):
            listener.close()
        yield f"{setting}: the server can listen on {host}, port {port or 'any'}"


def _try_identities(config: RunConfig) -> Iterator[str]:
    if config.backend == "processes" and uses_tls(config):
        with make_identities(config):
            yield "server.tls: certificates can be made"


def _list_untried(config: RunConfig) -> Iterator[str]:
    if config.backend == "simulate":
        yield "more than one gradient: later rounds may need more memory on a GPU, or diverge"
        return
    groups = len(assign_processes(config))
    yield f"the {groups} worker processes, each of which loads the data and the model once more"
    yield "workers on other machines, and the way between them and the server (varangian doctor tries it)"
    yield "more than one gradient: later rounds may need more memory on a GPU, or diverge"


def _tracking(config: RunConfig) -> Iterator[str]:
    if problems := missing_packages(config.trackers):
        raise ConfigError(problems)
    if config.trackers:
        names = ", ".join(map(TRACKERS.name, config.trackers))
        yield f"trackers: the packages of {names} are installed"


_Trial = Callable[[RunConfig], Iterator[str]]
_TRIALS: tuple[tuple[str, _Trial], ...] = (
    ("output", _writable),
    ("server", _listening),
    ("server.tls", _try_identities),
    ("trackers", _tracking),
)


def _sentence(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, ListenError | NoRoom) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return text.rstrip(".")
