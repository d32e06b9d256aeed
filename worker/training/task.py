"""Worker hyperparameters: model, data, loss, batch size, momentum, local steps and attack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from varangian.aggregators import Aggregator
from varangian.aggregators.numeric.shares import WeightCap
from varangian.protos.payloads.encoding import FLOAT32, Dtype
from varangian.worker.attacks import (
    Attack,
    LiveRule,
    ProtocolAttack,
    Sight,
    is_joint,
    on_vectors,
    remembers,
    sight_of,
    why_impossible,
)
from varangian.worker.attacks.mounted import delay
from varangian.worker.data import Source
from varangian.worker.data.partition import Partition
from varangian.worker.seeds import generator
from varangian.worker.simulation.availability import Always, Availability
from varangian.worker.simulation.delays import Delay, NoDelay
from varangian.worker.simulation.timetable import Timetable
from varangian.worker.training.buffers.vector import BufferMode
from varangian.worker.training.inner.steps import InnerOptimizer
from varangian.worker.training.losses import CrossEntropy, Loss
from varangian.worker.training.metrics import Metric, OwnMetric
from varangian.worker.training.models import Model


class Rates(Protocol):
    """A learning rate that depends on the round, as an optimizer has it."""

    def rate(self, round: int, rounds: int, /) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """The task of a worker: all settings that decide what it sends, given a round and the parameters.

    The same in every process of a run; small, and it can be pickled.
    """

    seed: int
    workers: tuple[str, ...]
    """The names of all, ascending."""
    model: Model
    data: Source
    partition: Partition
    f: int = 0
    """The number that may attack, as the server was told."""
    byzantine: tuple[str, ...] = ()
    """The names of those that do attack, ascending."""
    attack: Attack | None = None
    """How attackers make their vectors; None is as an honest worker does."""
    protocol: ProtocolAttack | None = None
    """How attackers send their vectors; None is as the protocol says."""
    knows: Sight | None = None
    """The honest vectors that an attacker sees; None is what is usual for the attack."""
    aggregator: Aggregator | None = None
    """The rule of the server, for attackers who see all; None where the task has no such attackers."""
    weights: Mapping[str, float] | Literal["samples"] | None = None
    """What the server has the vectors weigh, for the same attackers; `samples`: as many as the samples that
    each draws from."""
    weights_cap: WeightCap | None = None
    byzantine_data: Literal["share", "all"] = "share"
    """The samples of those that attack: a share, as any worker has, or all, and none is dealt to them."""
    batch_size: int = 32
    """Samples of one worker in one step."""
    momentum: float = 0.9
    """0 sends plain gradients."""
    local_steps: int = 1
    """C, as many steps as a worker takes by itself before it pushes."""
    local_lr: float = 1.0
    """gamma, the learning rate of these steps; with one of them it does not matter."""
    local_rates: Rates | None = None
    """gamma by round, in place of `local_lr`: so the local rate follows a schedule."""
    inner: InnerOptimizer | None = None
    """The optimizer of local steps, in place of plain steps by gamma."""
    fragments: int = 1
    """Into how many fragments the parameters are split; each round has one of them."""
    rounds: int = 1
    """Rounds of the run, for `local_rates` and the schedule of `inner`."""
    validation: float | None = None
    """The share of the training samples that is held out, and evaluated beside the test samples."""
    loss: Loss = field(default_factory=CrossEntropy)
    metrics: tuple[Metric | OwnMetric, ...] | None = None
    """Metrics on held-out data besides the loss; None is the accuracy where there are classes."""
    classes: int | None = None
    """The number of classes of the run, for data that does not say: the server's, where that is known."""
    deltas: bool = False
    """Whether workers push what is new in a vector since the last of theirs that counted."""
    wire: Dtype = FLOAT32
    """The type in which vectors travel: what a delta loses by it is part of the next."""
    buffers: BufferMode = "refuse"
    """What becomes of buffers of the model that training changes."""
    availability: Availability = field(default_factory=Always)
    delays: Delay = field(default_factory=NoDelay)
    device: str = "cpu"

    def __post_init__(self) -> None:
        problems = [*self._problems()]
        if problems:
            raise ValueError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.workers or [*self.workers] != sorted(set(self.workers)):
            yield f"`workers` should be different names in ascending order. Found {self.workers}."
        if [*self.byzantine] != [name for name in self.workers if name in self.byzantine]:
            yield f"`byzantine` should be some of the workers, in their order. Found {self.byzantine}."
        if not 0 <= self.f < max(1, len(self.workers)):
            yield f"`f` should be at least 0 and less than {len(self.workers)} workers. Found {self.f}."
        if self.batch_size < 1:
            yield f"`batch_size` should be at least 1. Found {self.batch_size}."
        if not 0 <= self.momentum < 1:
            yield f"`momentum` should be at least 0 and less than 1. Found {self.momentum}."
        if self.local_steps < 1:
            yield f"`local_steps` should be at least 1. Found {self.local_steps}."
        if not 0 < self.local_lr < math.inf:
            yield f"`local_lr` should be a positive number. Found {self.local_lr}."
        yield from self._attack_problems()

    def _attack_problems(self) -> Iterator[str]:
        if not self.byzantine:
            return
        if self.attack is None and self.protocol is not None:
            return
        if self.attack is None:
            yield f"`attack` should be given when workers are Byzantine. Found none for {self.byzantine}."
        elif reason := why_impossible(self.attack, len(self.workers), len(self.byzantine), self.knows):
            yield f"`attack` {self.attack} cannot be mounted: {reason}."

    @property
    def has_history(self) -> bool:
        """Whether an honest vector depends on the worker's rounds before."""
        return self.momentum > 0 or self.inner is not None or self.buffers == "local"

    def gamma(self, round: int) -> float:
        """The learning rate of the local steps of a round."""
        return self.local_lr if self.local_rates is None else self.local_rates.rate(round, self.rounds)

    @cached_property
    def sight(self) -> Sight:
        """The honest vectors that an attacker sees."""
        return sight_of(self.attack, self.knows) if on_vectors(self.attack) else self.knows or "own"

    @cached_property
    def timetable(self) -> Timetable:
        """The timetable: availability and delays of workers."""
        return Timetable(
            names=self.workers, seed=self.seed, availability=self.availability, delays=self.delays
        )

    def seen(self, round: int) -> tuple[str, ...]:
        """Workers whose honest vectors attackers see beyond their own: members of the round."""
        names = {"own": (), "colluders": self.byzantine, "all": self.honest}[self.sight]
        return tuple(name for name in names if self.timetable.available(name, round))

    def rule(
        self, rows: int, blocks: tuple[int, ...], weights: tuple[float, ...] | None = None
    ) -> LiveRule | None:
        """The server's rule as attackers know it; None if they do not, or it takes no round of so many.

        Args:
            rows: how many vectors come.
            blocks: sizes of the parameter tensors of the model.
            weights: of the vectors, those of attackers last; None where all weigh the same.
        """
        if self.aggregator is None or self.sight != "all":
            return None
        rule = LiveRule(self.aggregator, self.f, blocks=blocks, weights=weights)
        return None if rule.refuses(rows) else rule

    def delay(self, worker: str, round: int) -> float:
        """Seconds that a worker waits before it pushes; an attacker may choose them.

        Raises:
            AttackError: an attack of the user fails.
        """
        honest = self.timetable.delay(worker, round)
        if self.attack is None or worker not in self.byzantine:
            return honest
        return delay(self.attack, honest, round, generator(self.seed, "attack delay", worker, round))

    def listens(self, worker: str) -> bool:
        """Whether it pulls in every round, also where it takes no part: an attacker who follows others.

        With their momentum, or with what attackers remember together, it would be behind, had it missed a
        round of theirs.
        """
        return self._follows and worker in self.byzantine

    @cached_property
    def remembers_others(self) -> bool:
        """Whether attackers remember together what they have seen of others."""
        return remembers(self.attack) and is_joint(self.attack) and self.sight != "own"

    @cached_property
    def _follows(self) -> bool:
        """Whether attackers have to follow others in rounds in which they are away."""
        sees = on_vectors(self.attack) and self.sight != "own"
        history = self.has_history or self.remembers_others
        return sees and history and not isinstance(self.availability, Always)

    @property
    def honest(self) -> tuple[str, ...]:
        """The names of those that do not attack."""
        return tuple(name for name in self.workers if name not in self.byzantine)

    @property
    def holders(self) -> tuple[str, ...]:
        """The names of those to whom the partition deals samples."""
        return (self.byzantine_data == "all" and self.honest) or self.workers
