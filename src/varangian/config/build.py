"""From settings to the objects that carry a run out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from torch import Tensor

from varangian.aggregators import AggregationError
from varangian.config.default_names import default_names
from varangian.config.tree import RunConfig
from varangian.server.participation import Asap, Async, FedAvg, FedLaAvg, Sync
from varangian.server.participation.selection import BufferSelection, LongestAbsent, NeighbourhoodSelection
from varangian.server.protocol.adaptive_waiting import AdaptiveWaiting
from varangian.server.protocol.decisions import Machine
from varangian.server.protocol.events import Condition
from varangian.server.protocol.machine import ParticipationMachine
from varangian.server.protocol.state import RunPolicy, Selection
from varangian.server.protocol.synchronous import RoundMachine, RoundPolicy
from varangian.server.training.ema import Average
from varangian.server.training.learner import Learner
from varangian.server.training.optimizer import Sgd
from varangian.worker.simulation.availability import Always
from varangian.worker.simulation.timetable import Timetable
from varangian.worker.training.task import Task


def worker_names(config: RunConfig) -> tuple[str, ...]:
    """What the workers of a run are called, sorted: everybody else asks here."""
    return default_names(config.workers) if config.names is None else tuple(config.names)


def honest_names(config: RunConfig) -> tuple[str, ...]:
    """The workers that do as they should: the first ones."""
    return worker_names(config)[: config.workers - config.byzantine.count]


def byzantine_names(config: RunConfig) -> tuple[str, ...]:
    """The workers that attack: the last ones."""
    return worker_names(config)[config.workers - config.byzantine.count :]


def task(config: RunConfig) -> Task:
    """What every worker does, honest or not; in a program that is told of no attack, all are honest."""
    attack, way = config.byzantine.attack, config.participation
    return Task(
        seed=config.seed,
        workers=worker_names(config),
        model=config.model,
        data=config.data,
        partition=config.partition,
        f=config.f,
        byzantine=() if attack is None else byzantine_names(config),
        attack=attack,
        knows=config.byzantine.knows,
        batch_size=config.worker.batch_size,
        momentum=config.worker.momentum,
        local_steps=config.worker.local_steps,
        local_lr=config.worker.local_lr or config.optimizer.lr,
        local_rates=None if config.worker.local_lr else optimizer(config),
        rounds=config.rounds,
        loss=config.loss,
        metrics=config.metrics,
        deltas=isinstance(way, FedLaAvg) and way.form == "delta",
        availability=config.availability,
        delays=config.delays,
        device=config.worker.device,
    )


def timetable(config: RunConfig) -> Timetable:
    """Who takes part in which round, and how late."""
    return Timetable(
        names=worker_names(config),
        seed=config.seed,
        availability=config.availability,
        delays=config.delays,
    )


def policy(config: RunConfig) -> RoundPolicy:
    """When a round closes."""
    return RoundPolicy(
        workers=worker_names(config),
        rounds=config.rounds,
        quorum=config.quorum,
        deadline=config.server.deadline,
        shortfall=config.server.shortfall,
        f=config.f,
        requires=condition(config),
        waiting=waiting(config),
    )


def waiting(config: RunConfig) -> AdaptiveWaiting | None:
    """How long a round waits for those who are late; None for as long as its deadline allows."""
    server, way = config.server, config.participation
    # The buffer of `async` says itself how many a round does without.
    factor = None if isinstance(way, Async) else server.wait_factor
    # Who is away by plan comes back unannounced in `sync`: whether it was in time should not be a race.
    planned = isinstance(way, Sync) and not isinstance(config.availability, Always)
    rounds = None if planned else server.wait_rounds
    return None if factor is None and rounds is None else AdaptiveWaiting(factor, server.wait_floor, rounds)


def condition(config: RunConfig) -> Condition:
    """What the rule asks of the rows that it is given at the end of a round."""
    workers, way, aggregator = worker_names(config), config.participation, config.aggregator

    def requires(pushed: Collection[str], faulty: Collection[str]) -> str | None:
        match way:
            case FedLaAvg():  # who has not pushed has a row, too
                kept = [i for i, worker in enumerate(workers) if worker not in faulty]
            case Sync():
                kept = [i for i, worker in enumerate(workers) if worker in pushed]
            case _:  # the rows of a round have no place among all workers
                kept = [*range(len(pushed))]
        try:
            aggregator.among(kept, len(faulty))
        except AggregationError as error:
            return str(error)
        return None

    return requires


def machine(config: RunConfig) -> Machine:
    """What decides whose push counts, at the start of a run."""
    agreed, choice = policy(config), _choice(config)
    if choice is None:
        return RoundMachine(agreed)
    shared = {field.name: getattr(agreed, field.name) for field in fields(agreed)}
    fixed = config.server.quorum is not None
    return ParticipationMachine(RunPolicy(**shared, choice=choice, fixed=fixed))


def _choice(config: RunConfig) -> Selection | None:
    """Who is invited to a round; None where nobody has to be."""
    way = config.participation
    size = way.answers(config.workers, config.f)
    match way:
        case Sync():
            return None
        case FedAvg() | FedLaAvg():
            return LongestAbsent(size, way.gather)
        case Async():
            return BufferSelection(size, way.tau, way.staleness)
        case Asap():
            return NeighbourhoodSelection(way.graph, way.tau)
        case _:
            raise TypeError(f"there is no machine for {way!r}")


def optimizer(config: RunConfig) -> Sgd:
    """How the server steps.

    Raises:
        ValueError: settings that exclude each other.
    """
    settings = config.optimizer
    return Sgd(
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule,
    )


def learner(config: RunConfig, initial: Tensor) -> Learner:
    """The model's side of the server, at its start."""
    seed = config.seed if config.server.seed is None else config.server.seed
    return Learner(
        initial,
        config.aggregator,
        optimizer(config),
        rounds=config.rounds,
        seed=seed,
        average=None if config.ema is None else Average(config.ema, initial),
        batch=config.worker.batch_size * config.worker.local_steps,
    )
