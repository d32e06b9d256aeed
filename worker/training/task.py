"""The task of a run's workers, and the computation of some of them in one process."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from varangian.plugins import InputError
from varangian.protos.layout import Layout
from varangian.protos.shared_settings import SharedSettings
from varangian.worker.attacks import (
    Attack,
    DataAttack,
    GradientAttack,
    Knowledge,
    Sight,
    corrupted,
    refusal,
)
from varangian.worker.data import Source
from varangian.worker.data.partition import Partition, batch_indices, deal_samples
from varangian.worker.seeds import generator, stream
from varangian.worker.simulation.availability import Always, Availability
from varangian.worker.simulation.delays import Delay, NoDelay
from varangian.worker.simulation.timetable import Timetable
from varangian.worker.training.device import device_of
from varangian.worker.training.error_feedback import DeltaEncoder
from varangian.worker.training.fingerprint import shared_settings
from varangian.worker.training.flat import check_finite, flatten
from varangian.worker.training.losses import CrossEntropy, Loss, fitted
from varangian.worker.training.losses import name_of as name_of_loss
from varangian.worker.training.metrics import Metric, chosen
from varangian.worker.training.models import Model
from varangian.worker.training.momentum import Momentum
from varangian.worker.training.trainer import Goal, Trainer, built
from varangian.worker.transport.results import Declined

Compute: TypeAlias = Callable[[str, int, Tensor], Tensor]
"""From a worker, a round and the parameters (d,) to a vector (d,)."""


class Rates(Protocol):
    """A learning rate that depends on the round, as an optimizer has it."""

    def rate(self, round: int, rounds: int, /) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that decides what a worker sends, given a round and the parameters.

    The same in every process of a run; small, and it can be pickled.
    """

    seed: int
    workers: tuple[str, ...]
    """The names of all, ascending."""
    model: Model
    data: Source
    partition: Partition
    f: int = 0
    """How many may attack, as the server was told."""
    byzantine: tuple[str, ...] = ()
    """The names of those that do attack, ascending."""
    attack: Attack | None = None
    knows: Sight | None = None
    """Whose honest vectors an attacker sees; None is what the attack needs."""
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
    rounds: int = 1
    """How many rounds the run has, for `local_rates`."""
    loss: Loss = field(default_factory=CrossEntropy)
    metrics: tuple[Metric, ...] | None = None
    """What is reported of held-out data beside the loss; None is the accuracy where there are classes."""
    classes: int | None = None
    """The number of classes of the run, for data that does not say: the server's, where that is known."""
    deltas: bool = False
    """Whether workers push what is new in a vector since the last of theirs that counted."""
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
        if self.attack is None:
            yield f"`attack` should be given when workers are Byzantine. Found none for {self.byzantine}."
        elif reason := refusal(self.attack, len(self.workers), len(self.byzantine), self.knows):
            yield f"`attack` {self.attack} cannot be mounted: {reason}."

    def gamma(self, round: int) -> float:
        """The learning rate of the local steps of a round."""
        return self.local_lr if self.local_rates is None else self.local_rates.rate(round, self.rounds)

    @property
    def sight(self) -> Sight:
        """Whose honest vectors an attacker sees."""
        needs: Sight = self.attack.needs if isinstance(self.attack, GradientAttack) else "own"
        return self.knows or needs

    @cached_property
    def timetable(self) -> Timetable:
        """Who takes part in which round, and how late."""
        return Timetable(
            names=self.workers, seed=self.seed, availability=self.availability, delays=self.delays
        )

    def seen(self, round: int) -> tuple[str, ...]:
        """Whose honest vectors of a round attackers see beyond their own: of those who take part in it."""
        names = {"own": (), "colluders": self.byzantine, "all": self.honest}[self.sight]
        return tuple(name for name in names if self.timetable.available(name, round))

    def listens(self, worker: str) -> bool:
        """Whether it pulls in every round, also where it takes no part: an attacker who follows others.

        With their momentum it would be behind, had it missed a round of theirs.
        """
        follows = isinstance(self.attack, GradientAttack) and self.sight != "own" and self.momentum > 0
        return follows and worker in self.byzantine and not isinstance(self.availability, Always)

    @property
    def honest(self) -> tuple[str, ...]:
        """The names of those that do not attack."""
        return tuple(name for name in self.workers if name not in self.byzantine)


class WorkerCompute:
    """Any of the workers of a task, in one process with one model.

    What a worker sends is bit for bit the same whoever else is in the crew. An attacker who may look at
    others computes their vectors here, from the seed and the data, as long as it hears of every round:
    momentum of rounds that it missed is missing. Who is late for a whole round misses it. Methods can be
    called from any thread.

    Raises:
        InputError: when the data is missing, too small to share out, or does not fit the model or the loss.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        device = device_of(task.device)
        self.dataset = fitted(task.data.load(), task.loss, task.classes)
        metrics = chosen(task.metrics, name_of_loss(task.loss), self.dataset.classes)
        if task.byzantine and isinstance(task.attack, DataAttack) and self.dataset.classes is None:
            raise InputError(
                f"`byzantine.attack` {task.attack} needs class labels, and with `loss` "
                f"{name_of_loss(task.loss)} this data has none. Choose an attack on vectors, as sign_flip."
            )
        shards = deal_samples(task.partition, self.dataset, len(task.workers), task.seed)
        self._shards = dict(zip(task.workers, shards, strict=True))
        goal = Goal(task.loss, metrics, asked=task.metrics is not None)
        self._trainer = Trainer(task.model, self.dataset, goal, task.seed, device)
        self.metrics = self._trainer.metrics
        """What is reported beside the loss, by name."""
        self._momentum = Momentum(task.momentum)
        self._deltas = DeltaEncoder()
        self._lock = threading.Lock()
        self._view: tuple[int, Tensor | None] | None = None
        """What attackers see beyond their own vector, and in which round."""
        self._send = {name: self._sender(name) for name in task.workers}

    @property
    def layout(self) -> Layout:
        return self._trainer.layout

    @cached_property
    def common(self) -> SharedSettings:
        """What this machine should have in common with the others of the run."""
        return shared_settings(self.task, self.dataset)

    def initial(self) -> Tensor:
        """The parameters that a run starts from, (d,) on the CPU: a function of the seed."""
        return flatten(built(self.task.model, self.dataset, self.task.seed))

    def contribution(self, name: str, round: int, parameters: Tensor) -> Tensor:
        """What a worker sends in a round, honest or not: (d,) float32 on the CPU, the caller's to keep.

        The same round again gives the same bits.

        Raises:
            Declined: when the model or the loss fails for the samples of this worker, or what it would send
                is not finite. Only an attack sends that, so the server may take it as proof of a fault.
            ValueError: when there is no such worker, or the round is before the last one.
        """
        if name not in self._send:
            raise ValueError(f"There is no worker {name!r} among {len(self._send)}.")
        with self._lock:
            try:
                vector = self._send[name](name, round, parameters)
                if self.task.deltas:
                    vector = self._deltas.of(name, round, vector)
                    if name not in self.task.byzantine:
                        check_finite(vector)
            except InputError as error:
                raise Declined(str(error)) from error
            return vector.clone()

    def counted(self, name: str, round: int) -> None:
        """The server counted what this worker sent in this round: the next delta starts from there."""
        with self._lock:
            self._deltas.counted(name, round)

    def anew(self, name: str, round: int) -> None:
        """The server was started again and is in this round, which this worker had done, or was past."""
        with self._lock:
            self._momentum.anew(name, round)
            self._deltas.anew(name)
            self._view = None

    def answer(self, name: str, round: int, parameters: Tensor) -> Tensor | None:
        """What a worker sends in a round, as `contribution` has it; None when it takes no part."""
        if self.task.timetable.available(name, round):
            return self.contribution(name, round, parameters)
        if self.task.listens(name):
            with self._lock:
                self._visible(round, parameters)
        return None

    def evaluate(self, parameters: Tensor) -> dict[str, float]:
        """The mean loss and the metrics on the held-out samples, by name."""
        with self._lock:
            return self._trainer.evaluate(parameters)

    def training_loss(self, parameters: Tensor) -> float:
        """The mean loss on some of the training samples that are here."""
        with self._lock:
            return self._trainer.training_loss(parameters)

    @property
    def evaluation_bytes(self) -> int:
        """Memory that an evaluation takes at most."""
        with self._lock:
            return self._trainer.evaluation_bytes

    def rehearse(self, parameters: Tensor) -> dict[str, str]:
        """Try what the run will do: an evaluation, and a gradient of the smallest batches.

        Returns:
            The workers whose batches are too small for the model, and why it cannot take them.

        Raises:
            InputError: when nobody's batch will do, or the evaluation fails.
        """
        unable = dict[str, str]()
        sizes = {name: min(self.task.batch_size, len(shard)) for name, shard in self._shards.items()}
        with self._lock:
            self._trainer.rehearse()
            for size in sorted(set(sizes.values())):
                names = [name for name, own in sizes.items() if own == size]
                try:
                    x, y = self._trainer.batch(self._shards[names[0]][:size])
                    self._trainer.gradient(parameters, x, y, "trial")
                except InputError as error:
                    unable |= dict.fromkeys(names, str(error))
                    if len(unable) == len(sizes):
                        raise
                else:
                    break
        return unable

    @property
    def state_bytes(self) -> int:
        """The size of the whole state of the model."""
        return self._trainer.state_bytes

    @contextmanager
    def state(self, parameters: Tensor) -> Generator[dict[str, Any]]:
        """The whole state of the model with these parameters, for as long as nothing else is computed."""
        with self._lock:
            yield self._trainer.state(parameters)

    def _sender(self, name: str) -> Compute:
        attack = self.task.attack if name in self.task.byzantine else None
        if isinstance(attack, GradientAttack):
            return corrupted(self._honest, attack, self._knowledge)
        return partial(self._trained, attack)

    def _honest(self, name: str, round: int, parameters: Tensor) -> Tensor:
        return self._trained(None, name, round, parameters)

    def _trained(self, poison: DataAttack | None, name: str, round: int, parameters: Tensor) -> Tensor:
        return self._momentum(name, round, lambda: self._gradient(poison, name, round, parameters))

    def _gradient(self, poison: DataAttack | None, name: str, round: int, parameters: Tensor) -> Tensor:
        """(x - y) / gamma after C steps y <- y - gamma g(y) from y = x: the sum of the g."""
        gamma = self.task.gamma(round)
        total = self._step(poison, name, round, 0, parameters)
        for step in range(1, self.task.local_steps):
            there = torch.sub(parameters, total, alpha=gamma)
            total = total.add_(self._step(poison, name, round, step, there))
        return total

    def _step(
        self, poison: DataAttack | None, name: str, round: int, step: int, parameters: Tensor
    ) -> Tensor:
        """The gradient of one local step; each has batches and random numbers of its own."""
        seed, purpose = self.task.seed, (name, round, step) if step else (name, round)
        batches = stream(seed, "step", step) if step else seed
        indices = batch_indices(self._shards[name], self.task.batch_size, batches, name, round)
        x, y = self._trainer.batch(indices)
        if poison is not None:
            assert self.dataset.classes is not None
            x, y = poison.poisons(x, y, self.dataset.classes, generator(seed, "poison", *purpose))
        return self._trainer.gradient(parameters, x, y, "forward", *purpose)

    def _knowledge(self, own: Tensor, name: str, round: int, parameters: Tensor) -> Knowledge:
        task, view = self.task, self._visible(round, parameters)
        return Knowledge(
            honest=own[None] if view is None else view,
            n=len(task.workers),
            f=len(task.byzantine),
            rank=task.byzantine.index(name),
            round=round,
            rng=generator(task.seed, "attack", name, round),
        )

    def _visible(self, round: int, parameters: Tensor) -> Tensor | None:
        """The vectors (k, d) that an attacker sees beyond its own, if any; shared in a crew."""
        if self._view is None or self._view[0] != round:
            self._view = None  # frees the last one before the next is stacked
            rows = [*self._shown(round, parameters)]
            self._view = (round, torch.stack(rows) if rows else None)
        return self._view[1]

    def _shown(self, round: int, parameters: Tensor) -> Iterator[Tensor]:
        """The vectors of those who are seen, but for those who cannot compute one."""
        for name in self.task.seen(round):
            with suppress(InputError):
                yield self._honest(name, round, parameters)


def rehearse(task: Task) -> dict[str, str]:
    """Load the data, build the model, compute a first gradient and evaluate on a few samples.

    Returns:
        The workers whose batches are too small for the model, and why it cannot take them.

    Raises:
        InputError: something does not work; the text is a sentence that says what.
    """
    worker_compute = WorkerCompute(task)
    return worker_compute.rehearse(worker_compute.initial())
