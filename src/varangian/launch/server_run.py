"""The run of a server, wherever its workers are: its parts, its run folder, and its end."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from varangian.aggregators import AggregationError
from varangian.aggregators.base import is_whole
from varangian.config import RunConfig
from varangian.config.build import learner, machine, task
from varangian.launch.code_failures import CodeFailures
from varangian.launch.event_loop import SIGNALS, interruptible
from varangian.launch.memory_budget import MemoryBudget, available_memory
from varangian.launch.output.run_folder import RunFolder
from varangian.launch.output.run_result import RunResult
from varangian.launch.output.saved_model import AVERAGE, PARAMETERS, pack_state
from varangian.launch.result import Note, Outcome, RunError
from varangian.own_classes import is_own, named
from varangian.protos.network import descriptors
from varangian.registry import ConfigError, Problem
from varangian.server.observability.record import Observe, RoundRecord, Scores
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase
from varangian.server.rounds.clock import MONOTONIC, Clock
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.rounds.windowed import window_columns
from varangian.server.rows.source import RowSource
from varangian.server.training.learner import Learner
from varangian.worker.training.compute import VectorSource, WorkerCompute

TRIED = 1 << 24
"""Most numbers in the random rows with which a rule of the user is tried before a run."""


@dataclass
class ServerRun:
    """One run of a server, wherever its workers are."""

    config: RunConfig
    worker_compute: WorkerCompute
    """For the initial parameters and for evaluation."""
    vectors: VectorSource
    """Computes for the workers of a simulation."""
    learner: Learner
    folder: RunFolder
    observe: Observe
    machine: Machine
    account: MemoryBudget
    """The memory budget of the server."""
    row_source: RowSource
    note: Note
    """Takes what a user should know besides the rounds; called from any thread."""
    notes: tuple[str, ...] = ()
    """Remarks on the task, printed before the run."""
    stop: Stop = field(default_factory=lambda: Stop())
    rounds: int = 0
    updates: int = 0
    """The number of rounds with an update."""
    evaluated: int = -1
    """The number of rounds that were closed when the scores were taken."""
    scores: Scores = field(default_factory=Scores)
    began: float = field(default_factory=time.monotonic)
    saved: bool = False
    refused: Counter[str] = field(default_factory=Counter[str])
    """The number of refused calls and closed connections, by code."""
    failures: CodeFailures = field(init=False)

    def __post_init__(self) -> None:
        self.failures = CodeFailures(self.config)

    @classmethod
    def open(cls, config: RunConfig, observe: Observe, note: Note, folder: Path | None = None) -> ServerRun:
        """Load the data, build the model and make the run folder, at its place if one is given.

        Raises:
            RunError: something is missing, the parts do not fit, or there is not enough memory.
        """

        def warn(text: str) -> None:
            note(f"warning: {text}")

        try:
            worker_compute = WorkerCompute(task(config))
            initial = worker_compute.initial()
            notes = describe_misfits(config, worker_compute.rehearse(initial))
        except ConfigError:
            raise
        except ValueError as error:
            raise RunError(str(error)) from error
        account = memory_budget(config, worker_compute)
        if refusal := account.refusal(available_memory()) or check_descriptors(config):
            raise RunError(refusal)
        try_aggregator(config, worker_compute.layout.sizes)
        try:
            row_source = config.participation.row_source(
                config.worker_names, worker_compute.layout.numel, warn
            )
        except OSError as error:
            raise RunError(str(error)) from error
        vectors, gradients = vector_source(config, worker_compute)
        in_place = vectors is not worker_compute
        device = learner_device(config, worker_compute) if in_place else "cpu"
        built = learner(config, initial, device, worker_compute.layout.sizes)
        run_folder = RunFolder.create(
            config,
            metrics=worker_compute.score_names,
            facts={"memory": account.sentence} | ({"gradients": gradients} if gradients else {}),
            warn=warn,
            path=folder,
        )
        return cls(
            config,
            worker_compute,
            vectors,
            built,
            run_folder,
            observe,
            machine(config),
            account,
            row_source,
            note,
            (*notes, gradients) if gradients else notes,
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """Sentences about the task and the disk, printed before the run."""
        return (*self.notes, *self.storage)

    @property
    def storage(self) -> tuple[str, ...]:
        """A sentence about the storage that outlasts a round, if there is any."""
        plan = self.config.participation.latest_plan(self.config.workers, self.worker_compute.layout.numel)
        return () if plan is None else (plan.sentence(),)

    def coordinator(self, clock: Clock = MONOTONIC, executor: Executor | None = None) -> Coordinator:
        return Coordinator(
            self.machine,
            self.learner,
            evaluate=self.evaluate,
            evaluate_every=self.config.evaluate.every,
            observe=self._record,
            clock=clock,
            executor=executor,
            threads=self.config.server.threads,
            rows=self.config.participation.row_dtype(self.config.server.rows),
            window=is_windowed(self.config),
            row_source=self.row_source,
            row_slots=self.config.participation.row_slots(self.config.workers, self.config.f),
            in_place=self.vectors is not self.worker_compute,
        )

    def evaluate(self, parameters: Tensor) -> Scores:
        """Evaluate the parameters and, where there is one, their average."""
        average = self.learner.average
        ema = None if average is None else self.worker_compute.evaluate(average.parameters)
        return Scores.of(
            self.worker_compute.evaluate(parameters), ema, self.worker_compute.training_loss(parameters)
        )

    def result(self, reason: str) -> RunResult:
        """Close the books: the last files of the folder, and what is to be said."""
        seconds = time.monotonic() - self.began
        if self.evaluated != self.rounds:
            self.scores = self.evaluate(self.learner.parameters)
        result = RunResult(
            accuracy=self.scores.accuracy,
            loss=self.scores.loss,
            digest=self.learner.digest(),
            rounds=self.rounds,
            seconds=seconds,
            reason=self.stop.reason or self._nothing_learned or reason,
            outcome=self._outcome(),
            folder=self.folder.path,
            ema_accuracy=self.scores.ema_accuracy,
            ema_loss=self.scores.ema_loss,
            metrics=self.scores.metrics,
            signal=self.stop.signal,
            train_loss=self.scores.train_loss,
            code_error=self.failures.sentence(self.rounds),
            refused=dict(sorted(self.refused.items())) or None,
        )
        result = self.folder.finish(result, self._models())
        self.saved = True
        if result.code_error is not None:
            self.note(f"warning: {result.code_error}")
        return result

    def close(self) -> None:
        """Close the run folder and return the result; parameters are saved even after an error."""
        try:
            if self.rounds and not self.saved:
                path = self.folder.save(self._models())
                self.note(f"the parameters after {self.rounds} rounds are in {path}")
        except RunError as error:  # beside the one that ended the run
            self.note(f"warning: {error}")
        finally:
            self.folder.close()
            self.row_source.close()

    def _models(self) -> dict[str, bytes]:
        """The files of the model and, where there is one, of its average."""
        learner = self.learner
        models = {PARAMETERS: pack_state(self.worker_compute, learner.parameters)}
        if learner.average is not None:
            models[AVERAGE] = pack_state(self.worker_compute, learner.average.parameters)
        return models

    @property
    def over(self) -> bool:
        """Whether the run has ended or is about to."""
        return self.machine.state.phase is Phase.FINISHED or self.stop.event.is_set()

    def _outcome(self) -> Outcome:
        if self.machine.state.round >= self.config.rounds:
            return "failed" if self._nothing_learned else "finished"
        return "failed" if self.stop.signal is None else "interrupted"

    @property
    def _nothing_learned(self) -> str:
        """That all rounds are done and none had an update, as a reason; otherwise empty."""
        all_done = self.machine.state.round >= self.config.rounds
        return "" if self.updates or not (all_done and self.rounds) else "no round had an update"

    def _record(self, record: RoundRecord) -> None:
        self.rounds += 1
        self.updates += record.skipped is None
        if record.loss is not None:
            self.scores, self.evaluated = record.scores, self.rounds
        self.failures.look(record)
        self.folder.observe(record)
        self.observe(record)


def is_windowed(config: RunConfig) -> bool:
    """Whether rows are forgotten as they come. In a simulation all of them are there anyway."""
    return config.server.memory == "window" and config.backend != "simulate"


def learner_device(config: RunConfig, worker_compute: WorkerCompute) -> str:
    """The device of the model of a simulation whose vectors are on the device of its workers: the same.

    But vectors that outlast their round are kept in the memory or on the disk of this machine.
    """
    keeps = config.participation.latest_plan(config.workers, worker_compute.layout.numel) is not None
    return "cpu" if keeps else config.worker.device


def vector_source(config: RunConfig, worker_compute: WorkerCompute) -> tuple[VectorSource, str]:
    """The source of vectors in a simulation, and why it is not the one that was asked for, if so."""
    if config.backend != "simulate" or config.simulate.gradients == "exact":
        return worker_compute, ""
    from varangian.worker.training.batched.compute import BatchedCompute, CannotBatch

    try:
        return BatchedCompute(worker_compute), ""
    except CannotBatch as error:
        return worker_compute, f"workers compute one by one, as with simulate.gradients=exact: {error}"


def describe_misfits(config: RunConfig, found: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence about workers whose batches the model cannot take.

    Raises:
        ConfigError: too few are left for a quorum.
    """
    if not found:
        return ()
    reason, left = next(iter(found.values())), config.workers - len(found)
    who = f"{len(found)} of {config.workers} workers have batches that the model cannot take"
    if left < config.quorum:
        rule = f"leaves too few workers for the quorum of {config.quorum}: {who}. {reason.rstrip('.')}"
        raise ConfigError([Problem("partition", rule)])
    return (f"{who}, and will decline each round: {', '.join(found)}. {reason}",)


def try_aggregator(config: RunConfig, blocks: Sequence[int]) -> None:
    """Aggregate random rows where a rule or a mixing is the user's, so that its errors come before the run.

    Args:
        config: of the run.
        blocks: sizes of the parameter tensors.

    Raises:
        ConfigError: it fails.
    """
    aggregator, n = config.aggregator, config.participation.round_size(config.workers, config.f)
    d = sum(blocks)
    if not any(map(is_own, (*aggregator.mix, aggregator.rule))) or n * d > TRIED:
        return
    random = torch.Generator().manual_seed(config.seed)
    try:
        update = aggregator(torch.randn(n, d, generator=random), rng=random, blocks=blocks).vector
    except AggregationError as error:
        raise ConfigError([Problem("aggregator", str(error).rstrip("."))]) from error
    if not bool(update.isfinite().all()):
        rule = f"{named(aggregator.rule)} should give finite numbers for finite rows"
        raise ConfigError([Problem("aggregator", rule, hint="Found NaN or infinity for random ones.")])


def check_descriptors(config: RunConfig) -> str | None:
    """Why this machine lets too few files be open for the run; None when there are enough.

    Raises the limit of this process, and of those that it starts, as far as is needed and allowed.
    """
    if config.backend == "simulate":
        return None
    lane = config.server.data_port is not None
    least = descriptors.server_descriptors(config.workers, lane)
    return descriptors.why_too_few("the server", config.workers, lane, least)


def memory_budget(config: RunConfig, worker_compute: WorkerCompute) -> MemoryBudget:
    """The memory budget of a run's server."""
    d = worker_compute.layout.numel
    return MemoryBudget.of(
        config.workers,
        d,
        config.optimizer,
        rows=config.participation.row_dtype(config.server.rows),
        average=config.ema is not None,
        columns=window_columns(d) if is_windowed(config) else None,
        row_slots=config.participation.row_slots(config.workers, config.f),
        extra_vectors=config.participation.extra_vectors(config.workers)
        + is_whole(config.aggregator.rule) * config.workers,
        latest=config.participation.latest_plan(config.workers, d),
        lane=config.server.data_port is not None,
        evaluation=worker_compute.evaluation_bytes,
        rest=worker_compute.state_bytes - 4 * d,
        simulated=simulated_bytes(config, d),
    )


def simulated_bytes(config: RunConfig, d: int) -> int:
    """Bytes on this machine that the vectors of simulated workers take, with their momentum."""
    if config.backend != "simulate" or config.worker.device != "cpu":
        return 0
    if config.simulate.gradients == "batched":
        copies = 4 if config.worker.local_steps > 1 else 2
    else:
        copies = 2 if config.worker.momentum else 1
    return copies * config.workers * d * 4


@dataclass
class Stop:
    """A request to end the run before its last round, with the reason."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    signal: int | None = None
    """The number of the signal that asked for it."""
    reason: str = ""

    def because(self, reason: str) -> None:
        """The first reason counts."""
        self.reason = self.reason or reason
        self.event.set()

    @contextmanager
    def on_signals(self, note: Note) -> Generator[None]:
        """The first Ctrl-C or SIGTERM ends the run after the round in hand, a second one at once."""
        loop = asyncio.get_running_loop()
        on_terminate = signal.getsignal(signal.SIGTERM)

        def give_back() -> None:
            for number in SIGNALS:
                if loop.remove_signal_handler(number) and number is signal.SIGTERM and on_terminate:
                    signal.signal(number, on_terminate)

        def interrupt(name: str) -> None:
            self.signal = int(signal.Signals[name])
            give_back()
            note(f"{name}: stopping after the round in hand; once more to stop at once")
            self.because(f"stopped by {name}")

        if threading.current_thread() is not threading.main_thread():
            with interruptible(interrupt):
                yield
            return
        for number in SIGNALS:
            loop.add_signal_handler(number, interrupt, signal.Signals(number).name)
        try:
            yield
        finally:
            give_back()
