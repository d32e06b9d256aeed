"""Builders: the objects that carry a run out, made from its configuration."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from varangian.aggregators import AggregationError
from varangian.config.settings import AUTO, RunConfig
from varangian.protos.layout import Fragments
from varangian.server.protocol.adaptive_waiting import AdaptiveWaiting
from varangian.server.protocol.deadlines import AutoDeadline
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Condition, RunPolicy
from varangian.server.training.ema import Average
from varangian.server.training.learner import Learner
from varangian.worker.attacks import ProtocolAttack, inner_attack
from varangian.worker.simulation.availability import Always
from varangian.worker.training.task import Task


def task(config: RunConfig) -> Task:
    """The work of every worker, honest or not; in a program that is told of no attack, all are honest."""
    attack = config.byzantine.attack
    return Task(
        seed=config.seed,
        workers=config.worker_names,
        model=config.model,
        data=config.data,
        partition=config.partition,
        f=config.f,
        byzantine=() if attack is None else config.byzantine_names,
        attack=inner_attack(attack),
        protocol=attack if isinstance(attack, ProtocolAttack) else None,
        knows=config.byzantine.knows,
        aggregator=None if attack is None else config.aggregator,
        weights=None if attack is None else config.weights,
        weights_cap=config.weights_cap,
        byzantine_data=config.byzantine.data,
        batch_size=config.worker.batch_size,
        momentum=config.worker.momentum,
        local_steps=config.worker.local_steps,
        local_lr=config.worker.local_lr or config.optimizer.lr,
        local_rates=None if config.worker.local_lr else config.optimizer,
        inner=config.worker.inner,
        fragments=config.server.fragments,
        rounds=config.rounds,
        validation=config.evaluate.validation,
        loss=config.loss,
        metrics=config.metrics,
        deltas=config.participation.pushes_deltas,
        wire=config.wire.dtype,
        availability=config.availability,
        delays=config.delays,
        device=config.worker.device,
        buffers=config.buffers,
    )


def waiting(config: RunConfig) -> AdaptiveWaiting | None:
    """The adaptive waiting of a run; None if rounds wait until their deadline."""
    server = config.server
    factor = server.wait_factor if config.participation.adaptive_waiting else None
    # Without invitations a worker that was away by plan comes back unannounced: whether it counts should
    # not depend on how fast it is.
    planned = not config.selection.by_invitation and not isinstance(config.availability, Always)
    rounds = None if planned else server.wait_rounds
    return None if factor is None and rounds is None else AdaptiveWaiting(factor, server.wait_floor, rounds)


def condition(config: RunConfig) -> Condition:
    """The condition of the rule for the rows that it is given at the end of a round."""
    workers, participation, aggregator = config.worker_names, config.participation, config.aggregator
    weights = config.worker_weights

    def requires(pushed: Collection[str], faulty: Collection[str]) -> str | None:
        weighing = None
        if weights is not None:
            there = participation.row_workers(workers, pushed, faulty)
            least = min(weights.values())  # of a worker that has left meanwhile
            weighing = [weights.get(worker, least) for worker in (*there, *faulty)]
        try:
            places = participation.row_places(workers, pushed, faulty)
            aggregator.among(places, len(faulty), weighing)
        except AggregationError as error:
            return str(error)
        return None

    return requires


def machine(config: RunConfig) -> Machine:
    """The protocol at the start of a run: it decides whose push counts and when a round closes."""
    return Machine(policy(config))


def policy(config: RunConfig) -> RunPolicy:
    """The settings of a run that the protocol needs."""
    server = config.server
    return RunPolicy(
        workers=config.worker_names,
        rounds=config.rounds,
        quorum=config.quorum,
        deadline=server.deadline_ceiling if server.deadline == AUTO else server.deadline,
        auto=AutoDeadline(server.deadline_floor) if server.deadline == AUTO else None,
        shortfall=server.shortfall,
        f=config.f,
        requires=condition(config),
        waiting=waiting(config),
        selection=config.selection,
        fixed=server.quorum is not None,
    )


def server_seed(config: RunConfig) -> int:
    """The seed of what the server draws, which workers need not know."""
    return config.seed if config.server.seed is None else config.server.seed


def learner(
    config: RunConfig,
    initial: Tensor,
    device: str = "cpu",
    blocks: Sequence[int] | None = None,
    shapes: Sequence[Sequence[int]] | None = None,
    buffers: int = 0,
    fragments: Fragments | None = None,
) -> Learner:
    """The server's model, aggregation and optimizer at the start of a run.

    Args:
        config: of the run.
        initial: parameters, (d,), and buffers behind them.
        device: of the model.
        blocks: sizes of the parameter tensors, which a rule with `per_block` needs.
        shapes: of the parameter tensors, which an optimizer may need.
        buffers: how many numbers of `initial`, the last ones, are buffers.
        fragments: into which they are split, if they are.
    """
    initial = initial.to(device)
    return Learner(
        initial,
        config.aggregator,
        config.optimizer,
        rounds=config.rounds,
        seed=server_seed(config),
        average=None if config.ema is None else Average(config.ema, initial[: initial.numel() - buffers]),
        batch=config.worker.batch_size * config.worker.local_steps,
        device=device,
        blocks=blocks,
        shapes=shapes,
        weights=config.worker_weights,
        buffers=buffers,
        fragments=fragments,
    )
