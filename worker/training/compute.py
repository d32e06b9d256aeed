"""The computation of workers: from a round and the parameters to the vector that a worker sends.

A vector is made of local steps (`trainer` computes a gradient), momentum, an attack where the worker is
Byzantine, and error feedback where workers push deltas.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from varangian.aggregators.numeric.shares import weights_by_name
from varangian.own_classes import is_own, named
from varangian.plugins import InputError
from varangian.protos.layout import BUFFER, Fragments, Layout, LayoutError, fragments_of
from varangian.protos.shared_settings import SharedSettings
from varangian.state_file import Tree
from varangian.structured_logs import event
from varangian.worker.attacks import (
    TOGETHER,
    Backdoor,
    DataAttack,
    Knowledge,
    LiveRule,
    MountedAttack,
    Unpackable,
    on_vectors,
    poison,
    remembers,
)
from varangian.worker.data.batches import BatchSampler
from varangian.worker.data.partition import deal_samples
from varangian.worker.data.validation import hold_out
from varangian.worker.seeds import generator
from varangian.worker.training.buffers.local import LocalBuffers
from varangian.worker.training.device import find_device
from varangian.worker.training.error_feedback import DeltaEncoder
from varangian.worker.training.fingerprint import shared_settings
from varangian.worker.training.flat import check_finite, flatten
from varangian.worker.training.inner.steps import InnerSteps
from varangian.worker.training.losses import fit_dataset
from varangian.worker.training.losses import name_of as name_of_loss
from varangian.worker.training.metrics import choose_metrics
from varangian.worker.training.momentum import Momentum
from varangian.worker.training.task import Task
from varangian.worker.training.trainer import TRIAL, VALIDATION, Objective, Trainer, build_model
from varangian.worker.transport.results import Declined

log = logging.getLogger(__name__)

ATTACKERS = "@attackers"
"""The part of the history that the attackers of a process have together; no worker has this name."""


class View(NamedTuple):
    """The vectors of others in a round, as attackers see them."""

    names: tuple[str, ...]
    rows: Tensor
    """(k, d)."""
    rule: LiveRule | None
    """The server's rule, where they know it."""
    found: dict[int, Any]
    """The vectors that one of them has computed for all."""


class VectorSource(Protocol):
    """The computation of the workers of a simulation."""

    def vectors(
        self, names: Iterable[str], round: int, parameters: Tensor, /
    ) -> Mapping[str, Tensor | Declined | None]:
        """The vector of each worker, why it has none, or None where it takes no part in the round."""
        ...

    def confirm(self, name: str, round: int, /) -> None:
        """Note that the server counted this worker's vector of this round: the next delta starts there."""
        ...

    def parts(self) -> tuple[str, ...]:
        """The parts of the history on which vectors to come depend."""
        ...

    def state(self, part: str, /) -> Tree:
        """A part of the history, for `restore`; views, of use while nothing is computed."""
        ...

    def restore(self, part: str, tree: Any, /) -> None:
        """Put a part of the history back, as `state` gave it."""
        ...


class WorkerCompute:
    """Computes for any worker of a task, in one process with one model.

    A worker's vector has the same bits whoever else computes in the process. An attacker who sees others
    computes their vectors here, from the seed and the data; it has to hear of every round, since their
    momentum depends on all rounds before. Methods can be called from any thread.

    Raises:
        InputError: when the data is missing, too small to share out, or does not fit the model or the loss.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        device = find_device(task.device)
        self.dataset = fit_dataset(task.data.load(), task.loss, task.classes)
        if task.validation is not None:
            self.dataset = hold_out(self.dataset, task.validation, task.seed)
        attack = task.attack if task.byzantine else None
        if isinstance(attack, Backdoor) and self.dataset.classes is not None:
            attack.check_target(self.dataset.classes)
        metrics = choose_metrics(task.metrics, name_of_loss(task.loss), self.dataset.classes, attack)
        if task.byzantine and isinstance(task.attack, DataAttack) and self.dataset.classes is None:
            raise InputError(
                f"`byzantine.attack` {task.attack} needs class labels, and with `loss` "
                f"{name_of_loss(task.loss)} this data has none. Choose an attack on vectors, as sign_flip."
            )
        shards = deal_samples(task.partition, self.dataset, len(task.holders), task.seed)
        shares = dict.fromkeys(task.workers, torch.arange(self.dataset.size))
        shares |= zip(task.holders, shards, strict=True)
        self.batches = BatchSampler(shares, task.batch_size, task.seed)
        """The samples of each worker's batches."""
        objective = Objective(task.loss, metrics, asked=task.metrics is not None)
        self.trainer = Trainer(task.model, self.dataset, objective, task.seed, device, task.buffers)
        """Of use only inside `exclusive`."""
        self.metrics = self.trainer.metrics
        """The metrics that are reported beside the loss, by name."""
        buffers = self.trainer.initial_buffers
        self._local: LocalBuffers | None = None
        """The buffers of each worker, where they do not travel and there are some."""
        if task.buffers == "local" and buffers.numel():
            self._local = LocalBuffers(buffers)
        once = task.inner is not None or self._local is not None
        self._momentum = Momentum(task.momentum, once, 0 if self._local is not None else buffers.numel())
        self._inner: InnerSteps | None = None
        if task.inner is not None:
            split = None if task.fragments == 1 else split_into(self.layout, task.fragments)
            self._inner = InnerSteps(
                task.inner, task.local_steps, task.rounds, device, buffers.numel(), split
            )
        self._deltas = DeltaEncoder(task.wire)
        self.hosted = task.workers
        """The workers whose vectors are asked for here; of others only attackers here compute some."""
        self._told_unpackable = False
        self._lock = threading.RLock()
        self._view: tuple[int, View | None] | None = None
        """The round, and the vectors of it that attackers see beyond their own."""
        self._mounted = MountedAttack(attack, task.sight) if on_vectors(attack) else None
        self._poisoning = attack if isinstance(attack, DataAttack) else None

    @property
    def samples(self) -> Mapping[str, int]:
        """The number of training samples that each worker draws from."""
        return self.batches.samples

    @property
    def score_names(self) -> tuple[str, ...]:
        """The names of all scores of an evaluation but the loss, in order.

        Of a metric with several values they are known after `rehearse`.
        """
        found = self.trainer.columns
        validation = ("loss", *found) if self.task.validation is not None else ()
        return (*found, *(f"{VALIDATION}{name}" for name in validation))

    @property
    def layout(self) -> Layout:
        return self.trainer.layout

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names in the state of the model of the entries of the layout, in their order."""
        return tuple(name.removeprefix(BUFFER) for name, _ in self.layout.entries)

    @property
    def classes(self) -> int | None:
        """The number of classes; None where samples have none."""
        return self.dataset.classes

    @property
    def recipe(self) -> dict[str, str]:
        """The shapes of samples and of outputs, as JSON, with which the model can be built again."""
        return {
            "features": json.dumps(self.dataset.features),
            "outputs": json.dumps(self.dataset.outputs),
        }

    @property
    def common(self) -> SharedSettings:
        """The settings and data of this machine that the others of the run should share."""
        return self._common

    @cached_property
    def _common(self) -> SharedSettings:
        return shared_settings(self.task, self.dataset)

    def initial(self) -> Tensor:
        """The parameters that a run starts from, (d,) on the CPU: a function of the seed."""
        parameters = flatten(build_model(self.task.model, self.dataset, self.task.seed))
        travel = self.layout.buffers > 0
        return torch.cat([parameters, self.trainer.initial_buffers]) if travel else parameters

    def contribution(self, name: str, round: int, parameters: Tensor) -> Tensor | None:
        """Compute what a worker sends in a round, honest or not: (d,) float32 on the CPU, a copy.

        The same round again gives the same bits. None is an attacker who sends nothing.

        Raises:
            Declined: when the model or the loss fails for the samples of this worker, or what it would send
                is not finite. Only an attack sends that, so the server may take it as proof of a fault.
            ValueError: when there is no such worker, or the round is before the last one.
        """
        if name not in self.task.workers:
            raise ValueError(f"There is no worker {name!r} among {len(self.task.workers)}.")
        with self._lock:
            try:
                vector = self._vector(name, round, parameters)
                if vector is None:
                    return None
                if self.task.deltas:
                    vector = self._deltas.encode(name, round, vector)
                    if name not in self.task.byzantine:
                        check_finite(vector)
            except InputError as error:
                raise Declined(str(error)) from error
            return vector.clone()

    def confirm(self, name: str, round: int) -> None:
        """Note that the server counted this worker's vector of this round: the next delta starts there."""
        with self._lock:
            self._deltas.confirm(name, round)

    def parts(self) -> tuple[str, ...]:
        """The parts of the history: of each worker that is hosted, and of what attackers know together.

        Only those that decide what comes: without momentum, an inner optimizer, error feedback or an attack
        that remembers there are none.
        """
        task, mounted = self.task, self._mounted
        own = task.has_history or task.deltas
        remembering = mounted is not None and remembers(task.attack)
        names = [
            name
            for name in self.hosted
            if own or (remembering and not self._is_shared and name in task.byzantine)
        ]
        together = any(name in task.byzantine for name in self.hosted) and (
            (remembering and self._is_shared) or (task.has_history and bool(self._watched))
        )
        return (*names, ATTACKERS) if together else tuple(names)

    @property
    def _is_shared(self) -> bool:
        """Whether attackers have one memory together."""
        return self._mounted is not None and self._mounted.shared

    @property
    def _watched(self) -> list[str]:
        """Workers whose vectors attackers here compute, and that are not hosted here."""
        task = self.task
        if self._mounted is None or not any(name in task.byzantine for name in self.hosted):
            return []
        seen = {"own": (), "colluders": task.byzantine, "all": task.honest}[task.sight]
        return [name for name in seen if name not in self.hosted]

    def rounds(self, part: str) -> tuple[int | None, ...]:
        """The last rounds of what is in a part; while they are the same, so is its state."""
        with self._lock:
            if part == ATTACKERS:
                known = [self._momentum.round(name) for name in self._watched]
                return (*known, None if self._mounted is None else self._mounted.round(TOGETHER))
            attacked = self._mounted.round(part) if self._mounted and not self._is_shared else None
            return (self._momentum.round(part), self._deltas.round(part), attacked)

    def state(self, part: str) -> Tree:
        """A part of the history, for `restore`: in other places while nothing is computed, or a copy."""
        with self._lock:
            if part == ATTACKERS:
                watched = {name: self._momentum.state(name) for name in self._watched}
                inner = {name: self._inner_state(name) for name in self._watched}
                buffers = {name: self._local_state(name) for name in self._watched}
                attack = self.memory(self._mounted, TOGETHER)
                return {"momentum": watched, "inner": inner, "buffers": buffers, "attack": attack}
            return {
                "momentum": self._momentum.state(part),
                "inner": self._inner_state(part),
                "buffers": self._local_state(part),
                "deltas": self._deltas.state(part),
                "attack": None if self._is_shared else self.memory(self._mounted, part),
            }

    def _inner_state(self, name: str) -> Tree:
        return None if self._inner is None else self._inner.state(name)

    def _local_state(self, name: str) -> Tree:
        return None if self._local is None else self._local.state(name)

    def memory(self, mounted: MountedAttack | None, key: str) -> Tree:
        """What an attacker, or all together, know of earlier rounds; None where that cannot be kept."""
        if mounted is None:
            return None
        try:
            return mounted.state(key)
        except Unpackable as error:
            if not self._told_unpackable:
                self._told_unpackable = True
                log.warning(
                    "the memory of %s cannot be kept; after a restart it begins with start(): %s",
                    named(self.task.attack),
                    error,
                    extra=event("memory_not_kept"),
                )
            return None

    def restore(self, part: str, tree: Any) -> None:
        """Put a part of the history back, as `state` gave it."""
        with self._lock:
            self._view = None
            if part == ATTACKERS:
                for name in self._watched:
                    self._momentum.restore(name, tree["momentum"].get(name))
                    if self._inner is not None:
                        self._inner.restore(name, tree["inner"].get(name))
                    if self._local is not None:
                        self._local.restore(name, tree["buffers"].get(name))
                self.remember(self._mounted, TOGETHER, tree["attack"])
                return
            self._momentum.restore(part, tree["momentum"])
            if self._inner is not None:
                self._inner.restore(part, tree["inner"])
            if self._local is not None:
                self._local.restore(part, tree["buffers"])
            self._deltas.restore(part, tree["deltas"])
            if not self._is_shared:
                self.remember(self._mounted, part, tree["attack"])

    def remember(self, mounted: MountedAttack | None, key: str, tree: Any) -> None:
        """Put back what `memory` gave."""
        if mounted is None:
            return
        try:
            mounted.restore(key, tree)
        except Unpackable as error:
            log.warning(
                "the memory of %s that was kept is another one; it begins with start(): %s",
                named(self.task.attack),
                error,
                extra=event("memory_lost"),
            )

    def forget(self, part: str) -> None:
        """Forget a part of the history: it begins anew with the next round."""
        none: Tree = {} if part == ATTACKERS else None
        self.restore(
            part, {"momentum": none, "inner": none, "buffers": none, "deltas": None, "attack": None}
        )

    def unconfirmed(self, name: str) -> tuple[int, Tensor] | None:
        """The last delta of a worker and its round, unless it is known that the server has counted it."""
        with self._lock:
            return self._deltas.unconfirmed(name)

    def answer(self, name: str, round: int, parameters: Tensor) -> Tensor | None:
        """As `contribution`; None also for a worker that takes no part in the round."""
        if self.task.timetable.available(name, round):
            return self.contribution(name, round, parameters)
        if self.task.listens(name):
            with self._lock:
                self.follow(self._mounted, name, self._visible(round, parameters), round, parameters)
        return None

    def follow(
        self,
        mounted: MountedAttack | None,
        name: str,
        view: View | None,
        round: int,
        parameters: Tensor,
    ) -> None:
        """Let an attacker who is away remember what the others see in this round."""
        if mounted is not None and view is not None and self.task.remembers_others:
            with suppress(InputError):  # those who take part are told
                mounted(name, view.rows[0], self.knowledge(name, round, view, parameters))

    def vectors(
        self, names: Iterable[str], round: int, parameters: Tensor
    ) -> Mapping[str, Tensor | Declined | None]:
        """As `answer` for each of these workers; in the place of a vector, why there is none."""

        def vector(name: str) -> Tensor | Declined | None:
            try:
                return self.answer(name, round, parameters)
            except Declined as declined:
                return declined

        with self._lock, self.trainer.holding():
            return {name: vector(name) for name in names}

    @contextmanager
    def exclusive(self) -> Generator[None]:
        """The model, for as long as nothing else is computed."""
        with self._lock:
            yield

    def evaluate(self, parameters: Tensor) -> dict[str, float]:
        """The mean loss and the metrics on the held-out samples, and on those for validation, by name."""
        with self._lock:
            return self.trainer.evaluate(parameters)

    def training_loss(self, parameters: Tensor) -> float:
        """The mean loss on some of the training samples that are here."""
        with self._lock:
            return self.trainer.training_loss(parameters)

    def held_out_loss(self, parameters: Tensor, seed: int, round: int, batch: int) -> float:
        """The mean loss on some of the samples for validation, which are others in each round.

        Raises:
            InputError: the model or the loss fails.
        """
        with self._lock:
            return self.trainer.held_out_loss(parameters, seed, round, batch)

    @property
    def evaluation_bytes(self) -> int:
        """The most bytes of memory that an evaluation takes."""
        with self._lock:
            return self.trainer.evaluation_bytes

    def rehearse(self, parameters: Tensor) -> dict[str, str]:
        """Try an evaluation, and a gradient of the smallest batches.

        Returns:
            The workers whose batches are too small for the model, and the reason.

        Raises:
            InputError: no worker's batch can be used, or the evaluation fails.
        """
        unable = dict[str, str]()
        sizes = self.batches.sizes
        with self._lock:
            self.trainer.rehearse()
            self._try_attack(parameters)
            for size in sorted(set(sizes.values())):
                names = [name for name, own in sizes.items() if own == size]
                try:
                    x, y = self.trainer.batch(self.batches.first(names[0]))
                    self.trainer.gradient(parameters, x, y, "trial")
                except InputError as error:
                    unable |= dict.fromkeys(names, str(error))
                    if len(unable) == len(sizes):
                        raise
                else:
                    break
        return unable

    def _try_attack(self, parameters: Tensor) -> None:
        """Ask an attack of the user for a vector in place of random numbers, or any attack for a batch.

        Raises:
            AttackError: it fails.
        """
        task, attack = self.task, self.task.attack
        if not task.byzantine or attack is None:
            return
        random = generator(task.seed, "trial")
        if on_vectors(attack) and is_own(attack):
            mounted, name = MountedAttack(attack, task.sight), task.byzantine[0]
            names = {"own": (name,), "colluders": task.byzantine, "all": task.honest}[task.sight]
            for round in range(1 + remembers(attack)):
                rows = torch.randn(len(names), self.layout.numel, dtype=torch.float32, generator=random)
                view = self.view(round, names, rows)
                mounted(name, rows[0].clone(), self.knowledge(name, round, view, parameters))
        elif isinstance(attack, DataAttack) and self.dataset.classes is not None:
            x, y = self.trainer.batch(torch.arange(min(TRIAL, self.dataset.size)))
            poison(attack, x, y, self.dataset.classes, random)
        if is_own(attack):
            task.delay(task.byzantine[0], 0)

    @property
    def state_bytes(self) -> int:
        """The size of the whole state of the model."""
        return self.trainer.state_bytes

    @contextmanager
    def model_state(self, parameters: Tensor) -> Generator[dict[str, Any]]:
        """The whole state of the model with these parameters, for as long as nothing else is computed."""
        with self._lock:
            yield self.trainer.state(parameters)

    def _vector(self, name: str, round: int, parameters: Tensor) -> Tensor | None:
        if name not in self.task.byzantine:
            return self._honest(name, round, parameters)
        if self._mounted is None:
            return self._with_momentum(self._poisoning, name, round, parameters)
        own = self._honest(name, round, parameters)
        view = self._visible(round, parameters)
        return self.attacked(self._mounted, name, round, own, view, parameters)

    def attacked(
        self,
        mounted: MountedAttack,
        name: str,
        round: int,
        own: Tensor,
        view: View | None,
        parameters: Tensor,
    ) -> Tensor | None:
        """The vector that an attacker sends in place of its own honest one."""
        seen = view or self.view(round, (name,), own[None])
        knows = self.knowledge(name, round, seen, parameters)
        return mounted(name, own, knows, alone=view is None)

    def _honest(self, name: str, round: int, parameters: Tensor) -> Tensor:
        return self._with_momentum(None, name, round, parameters)

    def _with_momentum(
        self, attack: DataAttack | None, name: str, round: int, parameters: Tensor
    ) -> Tensor:
        return self._momentum(name, round, lambda: self._moved(attack, name, round, parameters))

    def _moved(self, attack: DataAttack | None, name: str, round: int, parameters: Tensor) -> Tensor:
        """As `local_steps`; buffers that do not travel are its own, and kept for its next round."""
        if self._local is None:
            return self.local_steps(attack, name, round, parameters)
        own = self._local.of(name).to(parameters.device)
        found = self.local_steps(attack, name, round, torch.cat([parameters, own]))
        check_finite(found)
        d = parameters.numel()
        self._local.keep(name, found[d:])
        return found[:d]

    def _inner_steps(
        self, inner: InnerSteps, attack: DataAttack | None, name: str, round: int, parameters: Tensor
    ) -> Tensor:
        def write_gradient(row: Tensor, step: int, point: Tensor) -> None:
            x, y, purpose = self._batch(attack, name, round, step)
            self.trainer.write_gradient(row, point, x, y, "forward", *purpose)

        return inner(name, round, parameters, write_gradient)

    def local_steps(self, attack: DataAttack | None, name: str, round: int, parameters: Tensor) -> Tensor:
        """The sum of the gradients g of C steps y <- y - gamma g(y) from x: (x - y) / gamma.

        With an inner optimizer x - y, where y is the end of its steps. Buffers at the end of the vector are
        those after the last step.
        """
        if self._inner is not None:
            return self._inner_steps(self._inner, attack, name, round, parameters)
        gamma = self.task.gamma(round)
        d = parameters.numel() - self.trainer.initial_buffers.numel()
        total = self._gradient(attack, name, round, 0, parameters)
        for step in range(1, self.task.local_steps):
            moved = torch.sub(parameters, total, alpha=gamma)
            moved[d:] = total[d:]
            found = self._gradient(attack, name, round, step, moved)
            total[:d].add_(found[:d])
            total[d:] = found[d:]
        return total

    def _gradient(
        self, attack: DataAttack | None, name: str, round: int, step: int, parameters: Tensor
    ) -> Tensor:
        """The gradient of one local step; each has batches and random numbers of its own."""
        x, y, purpose = self._batch(attack, name, round, step)
        return self.trainer.gradient(parameters, x, y, "forward", *purpose)

    def _batch(
        self, attack: DataAttack | None, name: str, round: int, step: int
    ) -> tuple[Any, Any, tuple[str | int, ...]]:
        """The batch of one local step, and the purpose of its random numbers."""
        x, y = self.trainer.batch(self.batches.indices(name, round, step))
        purpose = purpose_of(name, round, step)
        if attack is not None:
            x, y = self.poisoned(attack, x, y, purpose)
        return x, y, purpose

    def poisoned(
        self, attack: DataAttack, x: Any, y: Any, purpose: tuple[str | int, ...]
    ) -> tuple[Any, Any]:
        """The batch that an attacker trains on."""
        assert self.dataset.classes is not None
        return poison(attack, x, y, self.dataset.classes, generator(self.task.seed, "poison", *purpose))

    def view(self, round: int, names: Sequence[str], rows: Tensor) -> View:
        """The vectors of some workers (k, d) as attackers see them."""
        task = self.task
        if task.sight != "all":
            return View(tuple(names), rows, None, {})
        attackers = [name for name in task.byzantine if task.timetable.available(name, round)]
        known = self._weights
        weights = None if known is None else tuple(known[name] for name in (*names, *attackers))
        rule = task.rule(len(rows) + len(attackers), self.layout.sizes, weights)
        return View(tuple(names), rows, rule, {})

    @cached_property
    def _weights(self) -> Mapping[str, float] | None:
        """What the server has the vector of each worker weigh; None where all weigh the same."""
        task, given = self.task, self.task.weights
        if given == "samples":
            given = {name: float(count) for name, count in self.samples.items()}
        return given and weights_by_name(given, task.workers, task.weights_cap, task.f)

    def knowledge(self, name: str, round: int, view: View, parameters: Tensor) -> Knowledge:
        """The knowledge of an attacker that sees these vectors."""
        task = self.task
        purpose = () if self._mounted is not None and self._mounted.shared else (name,)
        return Knowledge(
            honest=view.rows,
            n=len(task.workers),
            f=len(task.byzantine),
            rank=task.byzantine.index(name),
            round=round,
            rng=generator(task.seed, "attack", *purpose, round),
            model=parameters,
            rule=view.rule,
            names=view.names,
            blocks=self.layout.sizes,
            found=view.found,
        )

    def _visible(self, round: int, parameters: Tensor) -> View | None:
        """The vectors that attackers see beyond their own, if any; computed once for all of them."""
        if self._view is None or self._view[0] != round:
            self._view = None  # frees the last one before the next is stacked
            rows = self._visible_vectors(round, parameters)
            self._view = (round, self.view(round, [*rows], torch.stack([*rows.values()])) if rows else None)
        return self._view[1]

    def _visible_vectors(self, round: int, parameters: Tensor) -> dict[str, Tensor]:
        """The honest vectors of the workers that are seen, without those who cannot compute one."""
        rows = dict[str, Tensor]()
        for name in self.task.seen(round):
            with suppress(InputError):
                rows[name] = self._honest(name, round, parameters)
        return rows


def split_into(layout: Layout, count: int) -> Fragments:
    """The fragments of a model.

    Raises:
        InputError: it has fewer parameters.
    """
    try:
        return fragments_of(layout, count)
    except LayoutError as error:
        raise InputError(str(error)) from None


def purpose_of(name: str, round: int, step: int) -> tuple[str | int, ...]:
    """The purpose of random numbers of a worker in a local step."""
    return (name, round, step) if step else (name, round)


def rehearse(task: Task) -> dict[str, str]:
    """Load the data, build the model, compute a first gradient and evaluate on a few samples.

    Returns:
        The workers whose batches are too small for the model, and the reason.

    Raises:
        InputError: something does not work; the text is a sentence that says what.
    """
    worker_compute = WorkerCompute(task)
    return worker_compute.rehearse(worker_compute.initial())
