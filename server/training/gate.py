"""The gate on a held-out loss: vectors whose own step would raise it take no part in a round.

"Zeno: Distributed Stochastic Gradient Descent with Suspicion-based Fault-tolerance" (Xie et al., 2019)
scores the vector u of a worker by the descent f_r(x) - f_r(x - gamma u) of the loss on a few samples, less
rho |u|^2, and leaves the worst out. Here rho is 0, and a vector is left out only if the loss ascends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from varangian.plugins import InputError
from varangian.server.training.learner import Learner

log = logging.getLogger(__name__)

HeldOutLoss: TypeAlias = Callable[[Tensor, int], float]
"""From parameters (d + b,) and a round to the loss on the samples of this round.

Raises:
    InputError: code of the user fails.
"""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A gate: a vector that alone would raise the loss on held-out samples is left out of its round."""

    batch: int = 256
    """Samples of a round, of those that `evaluate.validation` holds out; other ones in each round."""
    step: float | Literal["auto"] = "auto"
    """The step that is tried, x - step * vector; auto is the learning rate of the server in this round."""
    tolerance: float = 0.0
    """The rise of the loss up to which a vector takes part."""
    every: int = 1
    """Rounds from one with a gate to the next; in the others all vectors take part."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"`batch` should be at least 1 sample. Found {self.batch}.")
        if not isinstance(self.step, str) and not 0 < self.step < math.inf:
            raise ValueError(f"`step` should be a number above 0, or auto. Found {self.step}.")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"`tolerance` should be a number, at least 0. Found {self.tolerance}.")
        if self.every < 1:
            raise ValueError(f"`every` should be at least 1 round. Found {self.every}.")


class HeldOutGate:
    """A gate at work. It has no state: what it decides depends on the parameters, the rows and the round.

    Args:
        gate: its settings.
        loss: on held-out samples.
        tell: takes a sentence about a loss that cannot be had; called once for each sentence.
    """

    def __init__(self, gate: Gate, loss: HeldOutLoss, tell: Callable[[str], object] = log.warning) -> None:
        self._gate, self._loss, self._tell = gate, loss, tell
        self._told = set[str]()

    def is_due(self, round: int) -> bool:
        """Whether vectors of this round are measured."""
        return round % self._gate.every == 0

    def left_out(
        self,
        round: int,
        learner: Learner,
        rows: Mapping[str, Tensor],
        faults: Mapping[str, str],
        f: int,
        factors: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Workers whose row should take no part in this round, with the rise of the loss by its step.

        At most f of them, counting those at fault already; so of the rows that are left at most as many are
        of Byzantine workers as before, and the worst go first. Fewer, where the condition of the rule would
        not hold for those left with the same f: a row that is left out may be an honest one.

        Args:
            round: which.
            learner: as it is before the step; not changed.
            rows: worker to what the rule would see. One that is not finite is left to the rule, to which it
                is a proven fault, and is one of the f.
            faults: other workers that have proved faulty.
            f: how many workers may be Byzantine.
            factors: by which the rows are multiplied before the rule; None for 1.
        """
        if not self.is_due(round):
            return {}
        finite = {name: row for name, row in rows.items() if bool(row.isfinite().all())}
        faulty = {*faults} | (rows.keys() - finite.keys())
        most = f - len(faulty)
        if most < 1:
            return {}
        rises = self._rises(round, learner, finite, most, factors or {})
        worst = [name for name, rise in rises.items() if rise > self._gate.tolerance]
        worst = sorted(worst, key=lambda name: (-rises[name], name))[:most]
        while worst and learner.why_broken(finite.keys() - {*worst}, faulty):
            worst.pop()
        return {name: rises[name] for name in sorted(worst)}

    def _rises(
        self,
        round: int,
        learner: Learner,
        rows: Mapping[str, Tensor],
        most: int,
        factors: Mapping[str, float],
    ) -> dict[str, float]:
        """The rise of the loss by the step of each row; nothing where it cannot be told.

        A row after whose step there is no finite loss has an infinite one: otherwise it would close the
        gate for all. But where there are more of them than may be Byzantine, the loss is to blame.
        """
        before, failed = self._finite_loss(learner.parameters, round)
        if before is None:
            self._tell_once(failed or "it is not finite for the parameters of the model")
            return {}
        step = self._gate.step
        step = learner.rate(round) if isinstance(step, str) else step
        point, rises = torch.empty_like(learner.parameters), dict[str, float]()
        for name in sorted(rows):
            learner.move_along(round, rows[name], step * factors.get(name, 1.0), point)
            after, why = self._finite_loss(point, round)
            failed = failed or why
            rises[name] = math.inf if after is None else after - before
        lost = sum(map(math.isinf, rises.values()))
        if lost > most:
            self._tell_once(failed or f"it is not finite after the steps of {lost} vectors")
            return {}
        if failed:
            self._tell_once(f"{failed} The vectors for which it failed were left out", ignored=False)
        return rises

    def _finite_loss(self, parameters: Tensor, round: int) -> tuple[float | None, str]:
        """The loss, or None where it is not finite; then why, if that is known."""
        try:
            loss = self._loss(parameters, round)
        except InputError as error:
            return None, str(error)
        return (loss, "") if math.isfinite(loss) else (None, "")

    def _tell_once(self, sentence: str, *, ignored: bool = True) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            end = "; all vectors of the round took part" if ignored else ""
            self._tell(f"the gate has no loss on held-out data: {sentence.rstrip('.')}{end}")
