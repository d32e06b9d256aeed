"""Evaluation of a policy on recorded rounds: the damage that it does, and the effort that it takes.

n  workers     f  of them attack     H  honest vectors     F  the aggregate     k  coordinates, or columns
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean

import torch
from torch import Tensor

from varangian.aggregators import AggregationError, Aggregator
from varangian.experiments.redteam.recording import RecordedRound, Window, by_products
from varangian.worker.attacks.composite import Composite, Scene
from varangian.worker.attacks.live_rule import LiveRule

EACH_STEP = 0.1
"""The effort of one step, so that of two policies with the same effect the shorter one is better."""


@dataclass(frozen=True)
class Fitness:
    """Damage and effort of a policy on recorded rounds."""

    damage: float
    """The share of progress that is lost, between 0 and 1: see `damage_of`."""
    effort: float
    """Mean distance of the attackers' vectors to the honest mean, in root mean squares of that of honest
    ones, so that about 1 is inconspicuous; and a little for each step."""


@dataclass(frozen=True)
class Judge:
    """The rule under attack, and the rounds that it is attacked in."""

    aggregator: Aggregator
    f: int
    """The attackers."""
    windows: tuple[Window, ...]

    def __call__(self, policy: Composite) -> Fitness:
        """Play a policy in every window."""
        played = [self._play(policy, window) for window in self.windows]
        effort = fmean(effort for _, effort in played) + EACH_STEP * len(policy.policy)
        return Fitness(fmean(damage for damage, _ in played), effort)

    @cached_property
    def _by_products(self) -> bool:
        return by_products(self.aggregator)

    def _play(self, policy: Composite, window: Window) -> tuple[float, float]:
        memory, reference = policy.start(), window.reference
        forward, efforts = reference, list[float]()
        error = total = torch.zeros_like(window.rounds[0].mean)
        for recorded in window.rounds:
            rule = LiveRule(
                self.aggregator,
                self.aggregator.tolerance or 0,
                blocks=window.blocks,
                weights=recorded.weights,
            )
            scene = self._scene(policy, recorded, forward, rule)
            try:
                vectors, memory = policy.play(scene, memory)
                sent, ranks = policy.of_all(vectors, self.f), policy.ranks(vectors, self.f)
            except AggregationError:  # of a rule that is asked: such attackers decline
                sent, ranks = [], []
            rows = [*recorded.honest, *sent]
            weights = rule.weights_of(len(rows), ranks)
            update = self._update(rows, reference, recorded.number, window.blocks, weights)
            efforts.append(_effort(scene, sent))
            if update is None:  # the round waits for the attackers, and harms no model
                continue
            mean = recorded.mean if recorded.weights is None else rule.mean(recorded.honest)
            total = total + mean
            error = error + (update - mean)
            reference = update
            forward = update if bool(update.any()) else forward
        return damage_of(error, total), fmean(efforts)

    def _scene(
        self,
        policy: Composite,
        recorded: RecordedRound,
        forward: Tensor | None,
        rule: LiveRule,
    ) -> Scene:
        known = None if rule.refuses(len(recorded.honest) + self.f) else rule
        return Scene(
            recorded.number,
            recorded.honest,
            recorded.mean,
            recorded.deviation,
            recorded.sign,
            recorded.noise(),
            forward,
            policy.line(known, recorded.honest, recorded.mean, self.f),
        )

    def _update(
        self,
        rows: Sequence[Tensor],
        reference: Tensor | None,
        round: int,
        blocks: tuple[int, ...] | None,
        weights: tuple[float, ...] | None,
    ) -> Tensor | None:
        rng = torch.Generator().manual_seed(round)
        stacked = torch.stack([*rows])
        try:
            measured = partial(_products, stacked, reference) if self._by_products else None
            found = self.aggregator(
                stacked, reference, rng, measured=measured, blocks=blocks, weights=weights
            )
            return found.vector
        except AggregationError:
            return None


def _products(rows: Tensor, reference: Tensor | None) -> Tensor:
    """Inner products of the rows, the reference and zero about the mean, as an aggregator takes them."""
    zero = torch.zeros_like(rows[0])
    points = torch.stack([*rows, zero if reference is None else reference, zero]).double()
    points -= rows.double().mean(dim=0)
    found = points @ points.T
    return (found + found.T) / 2


def damage_of(error: Tensor, total: Tensor) -> float:
    """The share of progress that an error takes: l / (1 + l) with l = |error|^2 / |total|^2.

    A step of the usual length 1 / L along F = mean + error lowers a loss by (|mean|^2 - |error|^2) / 2 L.
    So at l = 1, or a damage of one half, nothing is gained, and above it the loss grows.

    Args:
        error: the sum of F - mean over the rounds of a window: what varies from round to round cancels, as
            it does in training, and what keeps its direction adds up.
        total: the sum of the means.
    """
    ratio = float(error.double().square().sum()) / max(float(total.double().square().sum()), 1e-300)
    return ratio / (1 + ratio) if math.isfinite(ratio) else 1.0


def _effort(scene: Scene, sent: Sequence[Tensor]) -> float:
    """The distance of vectors to the honest mean, in root mean squares of that of honest ones.

    A missing vector is as conspicuous as an honest one at that distance.
    """
    usual = math.sqrt(max(float((scene.honest - scene.mean).double().square().sum(dim=1).mean()), 1e-300))
    if not sent:
        return 1.0
    effort = fmean(float((vector - scene.mean).double().norm()) for vector in sent) / usual
    return effort if math.isfinite(effort) else 1e300
