"""The run of a server, wherever its workers are: its parts, its run folder, and its end."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from varangian import __version__
from varangian.aggregators import AggregationError
from varangian.aggregators.base import is_whole
from varangian.config import RunConfig
from varangian.config.build import learner, machine, server_seed, task
from varangian.config.checks.all_checks import find_problems
from varangian.config.checks.weights import weight_sentence
from varangian.config.settings import AUTO
from varangian.config.worker_names import SAMPLES
from varangian.files import user_path
from varangian.launch.checkpoints.folder import Origin, check_best
from varangian.launch.checkpoints.keeper import CheckpointKeeper
from varangian.launch.checkpoints.kept_rows import KeptRows
from varangian.launch.checkpoints.lock import FolderLock
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.code_failures import CodeFailures
from varangian.launch.event_loop import SIGNALS, interruptible, without_child_handler
from varangian.launch.membership.changed_settings import change_of, with_members
from varangian.launch.membership.members_file import MembersFile
from varangian.launch.memory_budget import MemoryBudget
from varangian.launch.model_side import ModelSide
from varangian.launch.output.run_folder import RunFolder
from varangian.launch.output.run_result import RunResult
from varangian.launch.output.saved_model import AVERAGE, PARAMETERS, pack_state
from varangian.launch.result import Note, Outcome, RunError
from varangian.own_classes import is_own, named
from varangian.pki.signing import BundleSigner, can_sign
from varangian.protos.contract import Terms
from varangian.protos.layout import BUFFER, Fragments, Layout, LayoutError, fragments_of
from varangian.protos.network import descriptors
from varangian.protos.payloads.encoding import TORCH, Encoding
from varangian.registry import ConfigError, Problem
from varangian.resources import available_memory, readable
from varangian.server.identity.sessions import RECONNECT_GRACE, Sessions
from varangian.server.identity.tls import Security
from varangian.server.observability.record import Observe, RoundRecord, Scores
from varangian.server.observability.traffic import Traffic
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import Phase
from varangian.server.rounds.clock import MONOTONIC, Clock
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.rounds.windowed import window_columns
from varangian.server.rows.fragments import Fragmented
from varangian.server.rows.mapped import MappedPlan
from varangian.server.rows.source import RowSource
from varangian.server.training.gate import HeldOutGate
from varangian.server.training.learner import Learner
from varangian.server.weak_methods import weakly
from varangian.structured_logs import about
from varangian.trackers import Followers, RunFacts, missing_packages
from varangian.trackers.follower import END, END_AFTER_SIGNAL
from varangian.worker.training.compute import VectorSource, WorkerCompute

if TYPE_CHECKING:
    from varangian.server.observability.metrics import Metrics
    from varangian.server.observability.tracing import Tracing

WORTH_A_WORD = 10**8
"""Bytes of a checkpoint of which a run speaks when it starts."""
TRIED = 1 << 24
"""Most numbers in the random rows with which a rule of the user is tried before a run."""


@dataclass
class ServerRun:
    """One run of a server, wherever its workers are."""

    config: RunConfig
    """With the workers that its server begins with."""
    model_side: ModelSide
    """The model: its layout, its first parameters, its evaluation and its state."""
    vectors: VectorSource | None
    """Computes for the workers of a simulation; None where the workers have their own programs."""
    learner: Learner
    folder: RunFolder
    observe: Observe
    machine: Machine
    account: MemoryBudget
    """The memory budget of the server."""
    row_source: RowSource
    note: Note
    """Takes what a user should know besides the rounds; called from any thread."""
    start: RunConfig
    """With the workers of its start."""
    latest: RunConfig
    """With the workers after their last change, which may be later than the checkpoint."""
    lock: FolderLock | None = None
    """Of the run folder; None in a simulation that keeps nothing."""
    resumed: Resumed | None = None
    """What the run goes on from; None for a new one."""
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
    took_part: dict[str, int] = field(default_factory=dict[str, int])
    """The last round of each worker in which its vector counted."""
    saved: bool = False
    refused: Counter[str] = field(default_factory=Counter[str])
    """The number of refused calls and closed connections, by code."""
    traffic: Traffic = field(default_factory=Traffic)
    metrics: Metrics | None = None
    """Of a server with a metrics port."""
    tracing: Tracing | None = None
    """Of a server with `server.traces`."""
    watch: Observe | None = None
    """Takes the record of each round for the page of such a server."""
    failures: CodeFailures = field(init=False)
    keeper: CheckpointKeeper | None = field(init=False)
    """Keeps checkpoints; None in a run that writes none."""
    trackers: Followers = field(init=False)

    def __post_init__(self) -> None:
        self.failures = CodeFailures(self.config)
        self.keeper = self._keeper()
        self.trackers = Followers(self.config.trackers, self._facts(), self.note)
        if self.resumed is not None and self.resumed.state is not None:
            self._restore(self.resumed.state["run"])

    @classmethod
    @without_child_handler()
    def open(
        cls,
        config: RunConfig,
        observe: Observe,
        note: Note,
        folder: Path | None = None,
        resume: Resumed | None = None,
        own: ModelSide | None = None,
    ) -> ServerRun:
        """Load the data, build the model and make the run folder, or go on with one.

        Args:
            config: of the run.
            observe: called with the record of every round.
            note: takes sentences about the run.
            folder: the place of a new run folder; by default one below `config.output`.
            resume: the run that goes on, in its own folder.
            own: the model, where a program has it already; by default what the settings say is built.

        Raises:
            RunError: something is missing, the parts do not fit, or there is not enough memory.
        """

        def warn(text: str) -> None:
            note(f"warning: {text}")

        if problems := missing_packages(config.trackers):
            raise ConfigError(problems)
        try:
            # Samples were dealt among the workers of the start.
            worker_compute = WorkerCompute(task(config)) if own is None else None
            start, weighed = config, with_sample_weights(config, worker_compute)
            _, config, latest = settings_of(weighed, resume)
            model_side = own if worker_compute is None else worker_compute
            assert model_side is not None
            initial = model_side.initial()
            if resume is None:
                check_initial(initial, model_side.layout)
            notes = describe_misfits(config, model_side.rehearse(initial))
            check_best(config, model_side.score_names)
            if (gate := config.server.gate) is not None:
                check_gate_loss(model_side.held_out_loss(initial, server_seed(config), 0, gate.batch))
        except ConfigError:
            raise
        except ValueError as error:
            raise RunError(str(error)) from error
        check_layout(resume, model_side)
        room = available_memory()
        account = memory_budget(latest, model_side).within(room)
        if refusal := account.refusal(room) or check_descriptors(latest):
            raise RunError(refusal)
        layout = model_side.layout
        try_aggregator(config, layout.trained.sizes)
        try:
            if (mapped := mapped_plan(latest, layout.numel)) is not None:
                mapped.check_room()
            fragments = split_of(config, layout)
            row_source = (
                config.participation.row_source(config.worker_names, layout.trained.numel, warn)
                if fragments is None
                else Fragmented(fragments)
            )
        except OSError as error:
            raise RunError(str(error)) from error
        vectors, gradients = (None, "") if worker_compute is None else vector_source(config, worker_compute)
        device = learner_device(config, layout) if vectors is not worker_compute else "cpu"
        built = learner(
            config,
            initial,
            device,
            layout.trained.sizes,
            layout.trained.shapes,
            layout.buffers,
            fragments,
        )
        facts: dict[str, Any] = {"memory": account.sentence} | (
            {"gradients": gradients} if gradients else {}
        )
        if sentence := weight_sentence(config):
            facts["weights"] = config.worker_weights
            facts |= {"samples": weighed.weights} if start.weights == SAMPLES else {}
            notes = (*notes, sentence)
        run_folder, lock = open_folder(start, model_side.score_names, facts, note, folder, resume)
        return cls(
            config,
            model_side,
            vectors,
            built,
            run_folder,
            observe,
            machine(config),
            account,
            row_source,
            note,
            start,
            latest,
            lock,
            resume,
            (*notes, gradients) if gradients else notes,
        )

    @property
    def encoding(self) -> Encoding:
        """How workers write the vectors that they push."""
        layout = self.model_side.layout
        return Encoding(layout.numel, self.config.wire.dtype, layout.buffers)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Sentences about the task and the disk, printed before the run."""
        return (*self.notes, *self.storage)

    @property
    def storage(self) -> tuple[str, ...]:
        """Sentences about the storage that outlasts a round, where there is any worth a word."""
        layout = self.model_side.layout
        plan = self.config.participation.latest_plan(self.config.workers, layout.trained.numel)
        mapped = mapped_plan(self.config, layout.numel)
        latest = tuple(plan.sentence() for plan in (mapped, plan) if plan is not None)
        every, checkpoint = self.config.checkpoint_every, self.config.server.checkpoint
        size = self.account.snapshot
        if every is None or checkpoint is None or size < WORTH_A_WORD:
            return latest
        kept = f"the newest {checkpoint.keep} and up to two others are kept"
        return (*latest, f"checkpoints of {readable(size)} every {every} rounds; {kept}")

    def coordinator(self, clock: Clock = MONOTONIC, executor: Executor | None = None) -> Coordinator:
        """The coordinator of the run.

        Raises:
            RunError: the state that the run goes on from does not fit.
        """
        if self.resumed is None:
            return self._coordinator(clock, executor)
        try:
            coordinator = self._coordinator(clock, executor)
        except (ValueError, KeyError) as error:
            where = f"the state of round {self.resumed.round} in {self.folder.path}"
            reason = error if isinstance(error, ValueError) else repr(error)
            raise RunError(f"{where} does not fit these settings: {reason}") from error
        if self.latest is not self.config:
            members = self.members
            assert members is not None
            changes = [str(change.get("what", "")) for change in members.changes]
            coordinator.begin_with(change_of(self.latest, members.gone, (), changes))
        for worker in self.resumed.revoked:
            coordinator.withdraw(worker, "certificate revoked")
        return coordinator

    def _coordinator(self, clock: Clock, executor: Executor | None) -> Coordinator:
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
            rows_folder=rows_folder(self.config),
            window=is_windowed(self.config),
            row_source=self.row_source,
            row_slots=self.config.participation.row_slots(self.config.workers, self.config.f),
            in_place=self.vectors is not None and not isinstance(self.vectors, WorkerCompute),
            keeper=self.keeper,
            keep_rows=self._keep_rows(),
            gate=self._gate(),
            places_last=self.config.server.absent_after > RECONNECT_GRACE,
            state=None if self.resumed is None else self.resumed.state,
            connected=self.config.backend == "simulate",
        )

    def _facts(self) -> RunFacts:
        """What trackers are told of the run."""
        return RunFacts(
            self.folder.path.name.removesuffix(".running"),  # which those of a sweep lose in the end
            self.folder.path,
            self.start.resolved(),
            self.config.worker_names,
            self.config.rounds,
            None if self.resumed is None else self.resumed.round,
        )

    def _keep_rows(self) -> KeptRows | None:
        keep = self.config.server.keep_rows
        shapes = self.model_side.layout.trained.shapes
        return KeptRows(self.folder.path, keep, shapes, self.note) if keep else None

    def _gate(self) -> HeldOutGate | None:
        gate, model_side = self.config.server.gate, self.model_side
        if gate is None:
            return None
        seed, batch = server_seed(self.config), gate.batch
        return HeldOutGate(
            gate,
            lambda parameters, round: model_side.held_out_loss(parameters, seed, round, batch),
            lambda sentence: self.note(f"warning: {sentence}"),
        )

    def _keeper(self) -> CheckpointKeeper | None:
        config, every = self.config, self.config.checkpoint_every
        if config.server.checkpoint is None or every is None:
            return None
        return CheckpointKeeper(
            self.folder,
            config.server.checkpoint,
            every,
            config.rounds,
            Origin.of(self.start, self.folder.path.name, self.terms.epoch, self.model_side.layout),
            self.note,
            lock=self.lock,
            own=weakly(self.progress),
            without_copy=self.account.snapshot == 0,
            before=None if self.resumed is None else self.resumed.checkpoint,
        )

    @property
    def path(self) -> Path:
        """Of the run folder."""
        return self.folder.path

    @property
    def members(self) -> MembersFile | None:
        """The last change of workers before this start of the server."""
        return None if self.resumed is None else self.resumed.members

    @property
    def fixed(self) -> str:
        """Why the workers stay those of the start; empty if they may change."""
        if is_windowed(self.config):
            return "with server.memory=window the workers stay those of the start"
        return self.row_source.fixed

    def lacks(self, before: RunConfig, after: RunConfig) -> str:
        """What this machine lacks for more workers; empty if nothing."""
        if reason := check_descriptors(after):
            return reason
        # The store of latest vectors is made anew while the one before is there.
        now, then = (memory_budget(config, self.model_side) for config in (before, after))
        more, room = then.total - now.total + now.latest, available_memory()
        if room is not None and more > room:
            return f"it takes {readable(more)} more memory, and {readable(room)} are available"
        layout = self.model_side.layout
        plan = after.participation.latest_plan(after.workers, layout.trained.numel)
        mapped = mapped_plan(after, layout.numel)
        try:
            if plan is not None:
                plan.check_room()
            if mapped is not None:  # of which it has those of the workers before
                before_it = mapped_plan(before, layout.numel)
                more_rows = mapped.count - (0 if before_it is None else before_it.count)
                replace(mapped, count=max(0, more_rows)).check_room()
        except OSError as error:
            return str(error)
        return ""

    @property
    def terms(self) -> Terms:
        """What workers should know of the run beside its contract."""
        checkpoint, server = self.config.server.checkpoint, self.config.server
        return Terms(
            epoch=0 if self.lock is None else self.lock.epoch,
            resumed_at=0 if self.resumed is None else self.resumed.round,
            every=self.config.checkpoint_every or 0,
            keep=0 if checkpoint is None else checkpoint.keep,
            parent="" if self.resumed is None else self.resumed.parent,
            momentum=self.config.worker.momentum,
            deadline=server.deadline_ceiling if server.deadline == AUTO else server.deadline,
            fragments=server.fragments,
        )

    def sign_with(self, security: Security) -> None:
        """Sign the record of rounds with the key of the server's certificate, also after it is renewed."""
        if can_sign():
            self.folder.sign_with(BundleSigner(lambda: security.renewal.bundle))
        else:
            self.note("the record is not signed: that needs pip install 'varangian[certs]'")

    def measure(self, coordinator: Coordinator, sessions: Sessions, security: Security | None) -> Metrics:
        """The metrics of this server, which from now on take each round."""
        from varangian.server.observability.metrics import Facts, Metrics

        keeper = self.keeper
        self.metrics = Metrics(
            Facts(
                run=self.folder.path.name,
                machine=self.machine,
                sessions=sessions,
                refused=self.refused,
                traffic=self.traffic,
                row_bytes=lambda: coordinator.row_bytes,
                checkpoint=lambda: None if keeper is None else keeper.latest,
                security=security,
                epoch=self.terms.epoch,
                updates=self.updates,
            )
        )
        return self.metrics

    def trace(self) -> Tracing:
        """The traces of this server, which from now on have each round and each call."""
        from varangian.server.observability.tracing import Tracing

        self.tracing = Tracing(self.folder.path.name, self.terms.epoch)
        self.traffic.on_call = self.tracing.note_call
        self.traffic.trace_parent = self.tracing.trace_parent
        return self.tracing

    def grace(self) -> float:
        """Seconds that a stop waits for the open round: none where the run cannot go on as it is."""
        return 0.0 if self.stop.signal is None else self.config.server.stop_grace

    def progress(self) -> dict[str, Any]:
        """The counters of the run, as a checkpoint keeps them."""
        return {
            "rounds": self.rounds,
            "updates": self.updates,
            "evaluated": self.evaluated,
            "scores": self.scores._asdict(),
            "seconds": time.monotonic() - self.began,
            "failures": self.failures.state(),
        }

    def _restore(self, progress: Mapping[str, Any]) -> None:
        """Go on from what `progress` gave."""
        self.rounds, self.updates = progress["rounds"], progress["updates"]
        self.evaluated, self.scores = progress["evaluated"], Scores(**progress["scores"])
        self.began = time.monotonic() - progress["seconds"]
        self.failures.restore(progress["failures"])

    def evaluate(self, parameters: Tensor) -> Scores:
        """Evaluate the parameters and, where there is one, their average."""
        average = self.learner.averaged
        ema = None if average is None else self.model_side.evaluate(average)
        return Scores.of(
            self.model_side.evaluate(parameters), ema, self.model_side.training_loss(parameters)
        )

    def result(self, reason: str, command: str = "varangian run --resume {folder}") -> RunResult:
        """Close the books: the last files of the folder, and what is to be said.

        Args:
            reason: the reason why the run ended.
            command: that goes on with a run of this kind, where `{folder}` is its folder.
        """
        if self.keeper is not None:
            self.keeper.wait()
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
        self.trackers.end(result.plain())
        if result.code_error is not None:
            self.note(f"warning: {result.code_error}")
        if self.can_go_on:
            again = command.replace("{folder}", str(self.folder.path))
            self.note(f"{self.rounds} rounds are kept: {again} goes on")
        return result

    def close(self) -> None:
        """Close the run folder and return the result; parameters are saved even after an error."""
        try:
            if not (self.saved or self.folder.take_back()) and self.rounds:
                path = self.folder.save(self._models())
                self.note(f"the parameters after {self.rounds} rounds are in {path}")
        except RunError as error:  # beside the one that ended the run
            self.note(f"warning: {error}")
        finally:
            if self.keeper is not None:
                self.keeper.wait()
            # The end of a run without a result; otherwise it is told already.
            self.trackers.end(
                {"outcome": "failed", "reason": "it ended on an error", "rounds": self.rounds}
            )
            self.trackers.close(END if self.stop.signal is None else END_AFTER_SIGNAL)
            self.folder.close()
            self.row_source.close()
            if self.lock is not None:
                self.lock.release()

    def _models(self) -> dict[str, bytes]:
        """The files of the model and, where there is one, of its average."""
        learner = self.learner
        models = {PARAMETERS: pack_state(self.model_side, learner.parameters)}
        average = learner.averaged
        if average is not None:
            models[AVERAGE] = pack_state(self.model_side, average)
        return models

    @property
    def can_go_on(self) -> bool:
        """Whether the run was stopped before its last round, and all of its rounds are kept."""
        round = self.machine.state.round
        kept = self.keeper is not None and self.keeper.newest == round
        return self.stop.event.is_set() and kept and round < self.config.rounds

    @property
    def over(self) -> bool:
        """Whether the run has ended or is about to."""
        return self.machine.state.phase is Phase.FINISHED or self.stop.event.is_set()

    def _outcome(self) -> Outcome:
        if self.machine.state.round >= self.config.rounds:
            return "failed" if self._nothing_learned else "finished"
        return "failed" if self.stop.signal is None and not self.stop.for_good else "interrupted"

    @property
    def _nothing_learned(self) -> str:
        """That all rounds are done and none had an update, as a reason; otherwise empty."""
        all_done = self.machine.state.round >= self.config.rounds
        return "" if self.updates or not (all_done and self.rounds) else "no round had an update"

    def _record(self, record: RoundRecord) -> None:
        self.rounds += 1
        about().round = record.round + 1
        self.updates += record.skipped is None
        if record.loss is not None:
            self.scores, self.evaluated = record.scores, self.rounds
        self.took_part |= dict.fromkeys(record.pushes or (), record.round)
        self.failures.look(record)
        self.folder.observe(record)
        if self.metrics is not None:
            self.metrics.observe(record)
        if self.tracing is not None:
            self.tracing.observe(record)
        self.trackers.round(record)
        if self.watch is not None:
            self.watch(record)
        self.observe(record)


def split_of(config: RunConfig, layout: Layout) -> Fragments | None:
    """The fragments of the parameters; None where they are not split.

    Raises:
        ConfigError: the model has fewer.
    """
    if config.server.fragments == 1:
        return None
    try:
        return fragments_of(layout, config.server.fragments)
    except LayoutError:
        rule = f"should be at most {len(layout.sizes)}, the number of parameter tensors of the model"
        raise ConfigError([Problem("server.fragments", rule, config.server.fragments)]) from None


def settings_of(config: RunConfig, resume: Resumed | None) -> tuple[RunConfig, RunConfig, RunConfig]:
    """The settings with the workers of the start, of the checkpoint, and after their last change.

    Raises:
        RunError: they do not fit the other settings, which were changed.
    """
    kept = None if resume is None or resume.state is None else resume.state.get("members")
    there = config if kept is None else members_of(config, kept["workers"], kept["f"])
    last = None if resume is None else resume.members
    return config, there, there if last is None else members_of(there, last.workers, last.f)


def members_of(config: RunConfig, names: Sequence[str], f: int) -> RunConfig:
    """The settings with these workers; the same object if they are those already.

    Raises:
        RunError: they do not fit the other settings, which were changed.
    """
    if (tuple(names), f) == (config.worker_names, config.f):
        return config
    try:
        return with_members(config, names, f)
    except ConfigError as error:
        who = f"the workers of the run after their last change ({', '.join(names)}, f = {f})"
        raise RunError(f"{who} do not fit these settings. {error.problems[0]}") from error


def check_initial(initial: Tensor, layout: Layout) -> None:
    """See that a model begins with numbers: no round could be done with others.

    Raises:
        RunError: it does not.
    """
    if bool(initial.isfinite().all()):
        return
    parts = zip(layout.entries, initial.split([*layout.sizes]), strict=True)
    name = next(name for (name, _), part in parts if not bool(part.isfinite().all()))
    if name.startswith(BUFFER):
        raise RunError(
            "the buffers of the model should have finite numbers with buffers=robust. Found NaN or "
            f"infinity in {name.removeprefix(BUFFER)!r}: make a mask where it is used, or of booleans."
        )
    raise RunError(
        f"the model should have finite parameters to begin with. Found NaN or infinity in {name!r}."
    )


def check_gate_loss(loss: float) -> None:
    """See that a gate can work with the loss of the parameters with which a run begins.

    Raises:
        RunError: it cannot.
    """
    if not math.isfinite(loss):
        raise RunError(
            "`server.gate` needs a finite loss on held-out data for the parameters with which the run "
            f"begins. Found {loss}: no vector would be left out."
        )


def check_layout(resume: Resumed | None, model_side: ModelSide) -> None:
    """See that a checkpoint is of the model that the settings give.

    Raises:
        RunError: it is of another one.
    """
    checkpoint = None if resume is None else resume.checkpoint
    if resume is None or checkpoint is None or checkpoint["layout"] == model_side.layout.digest.hex():
        return
    raise RunError(
        f"the checkpoint of round {resume.round} in {resume.folder} is of another model: its parameters "
        "have other names or shapes than these settings give. Has code or data of your own changed since?"
    )


def open_folder(
    config: RunConfig,
    metrics: Sequence[str],
    facts: Mapping[str, Any],
    note: Note,
    path: Path | None,
    resume: Resumed | None,
) -> tuple[RunFolder, FolderLock | None]:
    """A new run folder, or that of a run that goes on, with its lock.

    Raises:
        RunError: it cannot be written, or another server works in it.
    """

    def warn(text: str) -> None:
        note(f"warning: {text}")

    if resume is not None:
        elapsed = 0.0 if resume.state is None else float(resume.state["run"]["seconds"])
        folder = RunFolder.reopen(
            resume.folder,
            config,
            resume.round,
            metrics=metrics,
            elapsed=elapsed,
            documents=resume.documents,
            resumed={
                "epoch": resume.lock.epoch,
                "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "host": socket.gethostname(),
                "varangian": __version__,
                **resume.record,
            },
            warn=warn,
        )
        return folder, resume.lock
    folder = RunFolder.create(config, metrics=metrics, facts=facts, warn=warn, path=path)
    if config.backend == "simulate" and config.checkpoint_every is None:
        return folder, None
    try:
        return folder, FolderLock.take(folder.path, note)
    except RunError:
        folder.close()
        folder.discard()
        raise


def is_windowed(config: RunConfig) -> bool:
    """Whether rows are forgotten as they come. In a simulation all of them are there anyway."""
    return config.server.memory == "window" and config.backend != "simulate"


def learner_device(config: RunConfig, layout: Layout) -> str:
    """The device of the model of a simulation whose vectors are on the device of its workers: the same.

    But vectors that outlast their round are kept in the memory or on the disk of this machine.
    """
    keeps = config.participation.latest_plan(config.workers, layout.trained.numel) is not None
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


def with_sample_weights(config: RunConfig, worker_compute: WorkerCompute | None) -> RunConfig:
    """The settings with numbers of training samples in the place of `weights: samples`.

    Raises:
        ConfigError: the rule does not hold with these weights, or nobody knows the numbers.
    """
    if config.weights != SAMPLES:
        return config
    if worker_compute is None:
        rule = "should be numbers by worker for a model and data of a program"
        raise ConfigError([Problem("weights", rule, SAMPLES)])
    samples = {name: float(count) for name, count in sorted(worker_compute.samples.items())}
    weighed = config.model_copy(update={"weights": samples})
    if problems := find_problems(weighed, whole=False):
        raise ConfigError(problems)
    return weighed


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
        rows, weights = torch.randn(n, d, dtype=torch.float32, generator=random), config.worker_weights
        weighing = None if weights is None else [*weights.values()][:n]
        update = aggregator(rows, rng=random, blocks=blocks, weights=weighing).vector
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
    data_channel = config.server.data_port is not None
    least = descriptors.server_descriptors(config.workers, data_channel)
    return descriptors.why_too_few("the server", config.workers, data_channel, least)


def rows_folder(config: RunConfig) -> Path | None:
    """The folder of the file in which the vectors of a round lie; None where they lie in memory."""
    folder = config.server.rows_folder
    return None if folder is None else user_path(folder)


def mapped_plan(config: RunConfig, d: int) -> MappedPlan | None:
    """The file in which the vectors of a round lie, if they do."""
    if (folder := rows_folder(config)) is None:
        return None
    slots = config.participation.row_slots(config.workers, config.f)
    return MappedPlan(folder, slots, d, config.participation.row_dtype(config.server.rows))


def memory_budget(config: RunConfig, model_side: ModelSide) -> MemoryBudget:
    """The memory budget of a run's server."""
    d = model_side.layout.numel
    fragments = split_of(config, model_side.layout)
    columns = window_columns(d) if is_windowed(config) else None
    return MemoryBudget.of(
        config.workers,
        d,
        config.optimizer,
        rows=config.participation.row_dtype(config.server.rows),
        mapped=config.server.rows_folder is not None,
        average=config.ema is not None,
        columns=columns if fragments is None else max(fragments.numels),
        row_slots=config.participation.row_slots(config.workers, config.f),
        extra_vectors=config.participation.extra_vectors(config.workers)
        + is_whole(config.aggregator.rule) * config.workers
        + (config.server.gate is not None),
        latest=config.participation.latest_plan(config.workers, d),
        data_channel=config.server.data_port is not None,
        evaluation=model_side.evaluation_bytes,
        rest=max(0, model_side.state_bytes - 4 * d),
        simulated=simulated_bytes(config, d),
        snapshot=snapshot_bytes(config, d),
    )


def simulated_bytes(config: RunConfig, d: int) -> int:
    """Bytes on this machine that the vectors of simulated workers take, with their momentum."""
    if config.backend != "simulate" or config.worker.device != "cpu":
        return 0
    if config.simulate.gradients == "batched":
        copies = 4 if config.worker.local_steps > 1 else 2
    else:
        copies = 2 if config.worker.momentum else 1
        copies += config.worker.inner.vectors if config.worker.inner is not None else 0
        copies += config.server.fragments > 1
    return copies * config.workers * d * 4


def snapshot_bytes(config: RunConfig, d: int) -> int:
    """Bytes of the copy of the state from which checkpoints are written; 0 where they have none."""
    if config.checkpoint_every is None:
        return 0
    participation = config.participation
    latest = participation.latest_plan(config.workers, d)
    if latest is not None and latest.folder is not None:
        return 0  # they may have no room in memory
    if config.server.rows_folder is not None and not config.selection.fresh_only:
        return 0  # nor those that wait for another round
    # The parameters, the last aggregate, the optimizer, the average, and a sum of deltas.
    vectors = 2 + config.optimizer.vectors + 2 * (config.ema is not None) + 2 * participation.pushes_deltas
    waiting = 0 if config.selection.fresh_only else participation.row_slots(config.workers, config.f)
    itemsize = TORCH[participation.row_dtype(config.server.rows)].itemsize
    kept = 0 if latest is None else latest.bytes
    return 4 * d * vectors + waiting * d * itemsize + kept + simulated_bytes(config, d)


@dataclass
class Stop:
    """A request to end the run before its last round, with the reason."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    signal: int | None = None
    """The number of the signal that asked for it."""
    reason: str = ""
    for_good: bool = False
    """Whether the program that has the server asked for it: nobody waits for another server then."""

    def by_program(self, reason: str) -> None:
        """End the run for good, unless something else ends it already."""
        if not self.event.is_set():
            self.for_good = True
            self.because(reason)

    def because(self, reason: str) -> None:
        """The first reason counts."""
        self.reason = self.reason or reason
        self.event.set()

    @contextmanager
    def on_signals(self, note: Note) -> Generator[None]:
        """The first Ctrl-C or SIGTERM ends the run after the round in hand, a second one at once.

        One that comes when the loop is no longer served, as the run is being closed, has nothing to end; a
        second one ends that, too. So these handlers are not those of the loop, which wait for it.
        """
        loop = asyncio.get_running_loop()

        def interrupt(name: str) -> None:
            if self.signal is not None:  # two at the same time
                return
            self.signal = int(signal.Signals[name])
            note(f"{name}: stopping after the round in hand; once more to stop at once")
            self.because(f"stopped by {name}")

        if threading.current_thread() is not threading.main_thread():
            with interruptible(interrupt):
                yield
            return
        on_terminate = signal.getsignal(signal.SIGTERM)

        def first(number: int, frame: FrameType | None) -> None:
            del frame
            # In this order: an error that a second signal raises here may come up where it is swallowed.
            loop.call_soon_threadsafe(interrupt, signal.Signals(number).name)
            give_back()

        def give_back() -> None:
            for number, handler in (
                (signal.SIGINT, signal.default_int_handler),
                (signal.SIGTERM, on_terminate),
            ):
                if signal.getsignal(number) is first and handler is not None:
                    signal.signal(number, handler)

        for number in SIGNALS:
            signal.signal(number, first)
        try:
            yield
        finally:
            give_back()
